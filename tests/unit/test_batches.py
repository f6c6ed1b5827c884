"""The order of songs is a function of the step; nothing is dropped, repeated or padded on the way to the model."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning.batches import (
    NO_TARGET,
    count_targets,
    cut_into_blocks,
    deal,
    fill_header,
    pack,
    songs_of_step,
    steps_per_epoch,
    tokenize_song,
)
from finetuning.config import SONG_HEADER
from finetuning.corpus import Song

SONG = Song("El río", "Ana", ("alegría", "fe"), "corre, corre\n\n¿a dónde?")


def test_the_header_has_what_is_known():
    assert fill_header(SONG, SONG_HEADER) == "Título: El río\nArtista: Ana\nSentimientos: alegría, fe\n\n"
    assert fill_header(Song("El río", "", (), "x"), SONG_HEADER) == "Título: El río\n\n"
    assert fill_header(Song("", "", (), "x"), SONG_HEADER) == ""
    assert fill_header(SONG, "none") == ""
    assert fill_header(Song("{artist}", "Ana", (), "x"), "{title}") == "{artist}\n\n"
    assert fill_header(SONG, "<{title}>\\n{artist}") == "<El río>\nAna\n\n"


def test_a_song_is_header_lyrics_and_end_of_text(embedded):
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokens, header = tokenize_song(SONG, tokenizer, SONG_HEADER)
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == fill_header(SONG, SONG_HEADER) + SONG.lyrics
    assert tokenizer.decode(tokens[:header]) == fill_header(SONG, SONG_HEADER)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 100])
def test_blocks_predict_every_token_but_the_first_once(length):
    tokens = list(range(length))
    blocks = cut_into_blocks(tokens, 8)
    assert all(len(block) <= 8 for block in blocks)
    assert [token for block in blocks for token in block[1:]] == tokens[1:]
    assert blocks[0][0] == 0
    assert count_targets(blocks) == length - 1


def test_an_epoch_has_every_song_once_and_epochs_differ():
    size, songs = 4, 30
    steps = steps_per_epoch(songs, size)
    epochs = [
        [song for step in range(steps) for song in songs_of_step(epoch * steps + step, songs, size, 0, 1)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(songs)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(songs_of_step(steps - 1, songs, size, 0, 1)) == 2  # the last batch isn't full


def test_the_order_follows_from_seed_stage_and_step_alone():
    torch.manual_seed(5)
    first = songs_of_step(17, 30, 4, 0, 1)
    torch.manual_seed(6)
    assert songs_of_step(17, 30, 4, 0, 1) == first
    assert songs_of_step(17, 30, 4, 1, 1) != first
    assert songs_of_step(17, 30, 4, 0, 2) != first


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 11])
def test_dealing_loses_nothing_and_gives_all_processes_the_same_number_of_passes(processes, micro_batch_size):
    numbers = random.Random(processes)
    blocks = [[n] * numbers.randint(2, 90) for n in range(11)]
    shares = deal(blocks, processes, micro_batch_size)
    dealt = [block for share in shares for micro_batch in share for block in micro_batch]
    assert sorted(dealt) == sorted(blocks)
    assert len({len(share) for share in shares}) == 1
    assert max(len(micro_batch) for share in shares for micro_batch in share) <= micro_batch_size


def test_dealing_balances_tokens():
    blocks = [[0] * length for length in (100, 90, 80, 70, 60, 50, 40, 30)]
    loads = [sum(len(block) for micro in share for block in micro) for share in deal(blocks, 2, 8)]
    assert abs(loads[0] - loads[1]) <= 20


def test_one_process_without_micro_batches_has_the_songs_in_their_order():
    assert deal([[1, 1], [2, 2, 2], [3]], 1, 4) == [[[[1, 1], [2, 2, 2], [3]]]]


def test_a_packed_row_by_hand():
    row = pack([[5, 6, 7], [8, 9]])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert row.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert row.targets.tolist() == [[6, 7, NO_TARGET, 9, NO_TARGET]]


def test_a_packed_row_with_context_that_is_not_scored():
    assert pack([[5, 6, 7], [8, 9]], [2, 1]).targets.tolist() == [[NO_TARGET, 7, NO_TARGET, 9, NO_TARGET]]


def test_a_row_of_nothing_runs_and_has_no_target():
    row = pack([])
    assert row.input_ids.shape == (1, 1)
    assert row.targets.tolist() == [[NO_TARGET]]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=request.param).eval()


def logits_of(model, blocks) -> torch.Tensor:
    row = pack(blocks)
    with torch.no_grad():
        return model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False).logits[0]


def test_songs_of_a_row_have_the_logits_that_they_have_alone(model):
    blocks = [
        torch.randint(0, 1000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        for length in (9, 30, 2, 17)
    ]
    together = logits_of(model, blocks).split([len(block) for block in blocks])
    for block, logits in zip(blocks, together, strict=True):
        alone = model(input_ids=torch.tensor([block]), use_cache=False).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_changing_a_song_changes_no_other_songs_logits(model):
    one, two, other = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8]
    before, after = logits_of(model, [one, two, one]), logits_of(model, [one, other, one])
    assert torch.equal(before[:5], after[:5])
    assert torch.equal(before[11:], after[11:])
    assert not torch.equal(before[5:11], after[5:11])


def test_a_row_in_training_mode_keeps_songs_apart_too(model):
    # use_cache is a model's default, and would have transformers join the songs even in training.
    model.train()
    one, two, other = [3, 1, 4], [9, 2, 6], [2, 7, 1]
    before, after = logits_of(model, [one, two]), logits_of(model, [one, other])
    model.eval()
    assert torch.equal(before[:3], after[:3])
