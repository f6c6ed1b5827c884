"""A text depends on its model, prompt and number alone, and is drawn from the distribution that was asked for."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning.generation import DrawByOwnNumbers, Sampling, generate

SAMPLING = Sampling(max_new_tokens=20, temperature=0.8, top_p=0.95, repetition_penalty=1.0, seed=0)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def prompts(tiny_model) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return [
        tokenizer.encode(text) for text in ("la noche", "Título: El río\n\ncorre, corre, que", "¿", "una mañana de abril")
    ]


def write(model, prompts, numbers=None, batch_size=16, sampling=SAMPLING) -> list[list[int]]:
    numbers = numbers or list(range(len(prompts)))
    return generate(model, prompts, numbers, sampling, end_of_text=model.config.eos_token_id, batch_size=batch_size)


def test_texts_do_not_depend_on_the_batch(model, prompts):
    together = write(model, prompts)
    assert write(model, prompts, batch_size=1) == together
    assert write(model, prompts, batch_size=3) == together
    assert write(model, prompts[2:], numbers=[2, 3]) == together[2:]


def test_the_seed_and_the_number_decide(model, prompts):
    assert write(model, prompts) == write(model, prompts)
    other_seed = Sampling(20, 0.8, 0.95, 1.0, seed=1)
    assert write(model, prompts, sampling=other_seed) != write(model, prompts)
    assert write(model, [prompts[0]] * 2)[0] != write(model, [prompts[0]] * 2)[1]


def test_global_random_numbers_play_no_part(model, prompts):
    torch.manual_seed(1)
    first = write(model, prompts)
    torch.manual_seed(2)
    assert write(model, prompts) == first


def test_the_nearly_greedy_text_is_the_greedy_one(model, prompts):
    # No repetition penalty, almost no temperature: the likeliest token each time.
    texts = write(model, prompts[:1], sampling=Sampling(10, 1e-4, 1.0, 1.0, 0))
    tokens = list(prompts[0])
    for token in texts[0]:
        with torch.no_grad():
            assert token == model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()
        tokens.append(token)


def draws(probabilities: list[float], top_p: float = 1.0, temperature: float = 1.0, count: int = 40_000) -> list[float]:
    """The share of the draws that each token gets."""
    processor = DrawByOwnNumbers(Sampling(1, temperature, top_p, 1.0, 0), [torch.Generator().manual_seed(0)])
    scores = torch.tensor([probabilities]).log()
    found = Counter(int(processor(torch.zeros(1, 1), scores).argmax()) for _ in range(count))
    return [found[token] / count for token in range(len(probabilities))]


def test_tokens_are_drawn_by_their_probabilities():
    probabilities = [0.1, 0.5, 0.15, 0.25]
    assert draws(probabilities) == pytest.approx(probabilities, abs=0.01)  # four standard errors


def test_temperature_sharpens():
    assert draws([0.8, 0.2], temperature=0.5) == pytest.approx([0.64 / 0.68, 0.04 / 0.68], abs=0.01)


def test_the_nucleus_is_the_least_set_that_reaches_top_p():
    assert draws([0.1, 0.5, 0.15, 0.25], top_p=0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.01)
    assert draws([0.1, 0.5, 0.15, 0.25], top_p=0.01, count=100) == [0, 1, 0, 0]


def test_rounding_errors_do_not_change_the_draw_even_where_all_tokens_are_nearly_alike():
    scores = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 0.1
    disturbed = scores + 1e-6 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(1))

    def drawn(logits: torch.Tensor) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(row) for row in range(64)]
        return DrawByOwnNumbers(SAMPLING, generators)(torch.zeros(64, 1), logits).argmax(-1)

    assert torch.equal(drawn(scores), drawn(disturbed))


def test_texts_end_before_the_end_of_text(model, prompts):
    end = model.config.eos_token_id
    assert all(end not in text for text in write(model, prompts * 8, numbers=list(range(32))))
