"""Batched sampling from a stage's model, each text by random numbers of its own.

A text depends on its model, its prompt and its seed; not on the texts beside it, the batch size or the number of
processes. So two stages given the same prompts and seeds are compared on equal terms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from finetuning.batches import seed_of


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int


class DrawByOwnNumbers(LogitsProcessor):
    """Draws the next token of each row by that row's own random numbers, and leaves only it possible.

    Temperature, then the nucleus (the likeliest tokens whose probabilities reach top_p; Holtzman et al. 2020), then a
    race: a token of probability p arrives after a time that is exponentially distributed with rate p, and the first
    to arrive is drawn, which happens with probability p (the Gumbel-max trick in another guise). A number a token
    rather than one a draw, since so the rounding errors of another batch size hardly ever change what is drawn.
    """

    def __init__(self, sampling: Sampling, generators: list[torch.Generator]) -> None:
        self._sampling, self._generators = sampling, generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(scores.float() / self._sampling.temperature, dim=-1)
        descending = probabilities.sort(dim=-1, descending=True).values
        # A token is in the nucleus if the sum before it hasn't reached top_p; the likeliest always is.
        size = ((descending.cumsum(-1) - descending) < self._sampling.top_p).sum(-1, keepdim=True)
        least = descending.gather(-1, size - 1)
        times = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=each) for each in self._generators])
        drawn = torch.where(probabilities >= least, probabilities / times.to(scores.device), 0.0).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    numbers_of_prompts: Sequence[int],
    sampling: Sampling,
    *,
    end_of_text: int,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[list[int]]:
    """Continue each prompt; the new tokens of each, without the end of text.

    Args:
        prompts: the tokens of each prompt, at least one; with the new tokens no more than the model sees at once.
        numbers_of_prompts: each prompt's number among all prompts of all processes; its random numbers follow from it.
        end_of_text: the token that ends a text.
        batch_size: how many texts are written at once.
    """
    model.eval()
    device = next(model.parameters()).device
    texts: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        length = max(map(len, batch))
        # Padded on the left, so that all rows go on at the same place; the attention mask hides the padding.
        input_ids = torch.tensor([[end_of_text] * (length - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in batch])
        seeds = [seed_of("text", sampling.seed, number) for number in numbers_of_prompts[start : start + batch_size]]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            written = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,  # the processor has drawn; the likeliest of what it leaves is its draw
                num_beams=1,
                repetition_penalty=sampling.repetition_penalty,
                logits_processor=LogitsProcessorList([DrawByOwnNumbers(sampling, generators)]),
                pad_token_id=end_of_text,
                eos_token_id=end_of_text,
            )
        for row in written[:, length:].tolist():
            texts.append(row[: row.index(end_of_text)] if end_of_text in row else row)
        on_progress(len(texts), len(prompts))
    return texts
