"""The negative log-likelihood of texts under a model: each token scored once, summed over texts and processes.

Perplexity is exp(sum of the tokens' negative log-likelihoods / number of tokens). A mean of means, over batches, texts
or processes, is something else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from finetuning.batches import NO_TARGET, pack

_TOKENS_PER_FORWARD = 2048


@dataclass(frozen=True, slots=True)
class Text:
    """A text's tokens and the first one that is scored; those before it are context only. The very first can't be."""

    tokens: list[int]
    first_scored: int = 1


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The summed negative log-likelihood (nats) of a number of tokens."""

    nll: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats a token; NaN for no tokens."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that exceeds a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def total(likelihoods: Sequence[Likelihood]) -> Likelihood:
    """The likelihood of several texts together."""
    return Likelihood(math.fsum(each.nll for each in likelihoods), sum(each.tokens for each in likelihoods))


def windows(text: Text, window: int, stride: int) -> list[Text]:
    """Cut a text into windows of at most `window` tokens that score each token once.

    Each window starts `stride` tokens after the one before it and scores what that one didn't. So from the second
    window on, a token has at least `window - stride` tokens of context.

    Source: the strided evaluation of transformers' page "Perplexity of fixed-length models".
    """
    found = []
    scored = max(1, text.first_scored)  # everything before this index is done with
    start = 0
    while scored < len(text.tokens):
        end = min(start + window, len(text.tokens))
        if end > scored:
            found.append(Text(text.tokens[start:end], scored - start))
            scored = end
        start += stride
    return found


def likelihoods(
    model: torch.nn.Module,
    texts: Sequence[Text],
    accelerator: Accelerator,
    *,
    window: int,
    stride: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Likelihood]:
    """The likelihood of each text, the work shared by all processes, the result the same on all.

    To be called by all processes together. The model is left in the mode, training or not, that it was in.
    """
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in windows(text, window, stride)]
    rows = _rows_of(pieces)
    # Sums and counts of this process's windows; float64, so that the order of adding doesn't show.
    sums = torch.zeros(len(texts), 2, dtype=torch.float64)
    was_training = model.training
    model.eval()
    # Every process runs the same number of rows, since a forward pass may be a collective operation.
    processes, rank = accelerator.num_processes, accelerator.process_index
    with torch.no_grad():
        for turn in range(-(-len(rows) // processes)):
            mine = turn * processes + rank
            _score(model, rows[mine] if mine < len(rows) else [], sums, accelerator.device)
            on_progress(min(len(rows), (turn + 1) * processes), len(rows))
    model.train(was_training)
    if processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    return [Likelihood(nll, int(tokens)) for nll, tokens in sums.tolist()]


def _rows_of(pieces: list[tuple[int, Text]]) -> list[list[tuple[int, Text]]]:
    """Put windows together into rows of at most _TOKENS_PER_FORWARD tokens, or one window."""
    rows: list[list[tuple[int, Text]]] = []
    room = 0
    for number, piece in pieces:
        if not rows or len(piece.tokens) > room:
            rows.append([])
            room = _TOKENS_PER_FORWARD
        rows[-1].append((number, piece))
        room -= len(piece.tokens)
    return rows


def _score(model: torch.nn.Module, row: list[tuple[int, Text]], sums: torch.Tensor, device: torch.device) -> None:
    packed = pack([piece.tokens for _, piece in row], [piece.first_scored for _, piece in row]).to(device)
    logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits
    losses = F.cross_entropy(logits[0].float(), packed.targets[0], ignore_index=NO_TARGET, reduction="none").double().cpu()
    start = 0
    for number, piece in row:
        sums[number, 0] += losses[start : start + len(piece.tokens)].sum()
        sums[number, 1] += len(piece.tokens) - piece.first_scored
        start += len(piece.tokens)
