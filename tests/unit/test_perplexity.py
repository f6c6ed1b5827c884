"""Each token is scored once, and sums are divided once, at the end."""

import math

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from finetuning import perplexity
from finetuning.perplexity import Likelihood, Text, likelihoods, total, windows


def tokens_of(length: int) -> list[int]:
    return torch.randint(0, 1000, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("length", [1, 2, 10, 11, 25, 64])
@pytest.mark.parametrize("first", [1, 4, 20])
@pytest.mark.parametrize("stride", [1, 4, 9])
def test_windows_score_each_token_once_with_enough_context(length, first, stride):
    window = 10
    scored = []
    for piece in windows(Text(list(range(length)), first), window, stride):
        assert len(piece.tokens) <= window
        assert piece.first_scored >= 1
        scored += piece.tokens[piece.first_scored :]
        # The text's tokens are their own places, so this is how much the model sees before the first scored one.
        assert piece.first_scored >= min(window - stride, piece.tokens[piece.first_scored])
    assert scored == list(range(first, length))


def one_token_at_a_time(model, text: Text, window: int, stride: int) -> Likelihood:
    """The definition: for each token its own forward pass over the context that its window gives it."""
    nll, count = 0.0, 0
    start = 0
    for place in range(text.first_scored, len(text.tokens)):
        while place >= start + window:
            start += stride
        context = torch.tensor([text.tokens[start:place]])
        with torch.no_grad():
            logits = model(input_ids=context, use_cache=False).logits[0, -1].double()
        nll -= torch.log_softmax(logits, -1)[text.tokens[place]].item()
        count += 1
    return Likelihood(nll, count)


def test_against_a_loop_that_scores_one_token_at_a_time(tiny_model, monkeypatch):
    monkeypatch.setattr(perplexity, "_TOKENS_PER_FORWARD", 100)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    texts = [Text(tokens_of(90)), Text(tokens_of(5), 3), Text(tokens_of(300), 10), Text(tokens_of(1)), Text(tokens_of(65))]
    scores = likelihoods(model, texts, Accelerator(cpu=True), window=64, stride=24)
    for text, score in zip(texts, scores, strict=True):
        expected = one_token_at_a_time(model, text, 64, 24)
        assert score.tokens == expected.tokens
        assert score.nll == pytest.approx(expected.nll, abs=1e-3, rel=1e-6)


def test_perplexity_is_neither_a_mean_of_perplexities_nor_of_losses():
    short, long = Likelihood(10.0, 1), Likelihood(10.0, 99)
    assert total([short, long]).perplexity == pytest.approx(math.exp(20 / 100))


def test_a_uniform_model_has_the_size_of_its_vocabulary_as_perplexity():
    assert Likelihood(7 * math.log(50), 7).perplexity == pytest.approx(50)


def test_nothing_scored_is_not_a_number_and_too_much_is_infinite():
    assert math.isnan(total([]).loss)
    assert Likelihood(1e6, 1).perplexity == math.inf


def test_the_mode_of_the_model_is_left_as_it_was(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    likelihoods(model, [Text(tokens_of(8))], Accelerator(cpu=True), window=64, stride=32)
    assert model.training
