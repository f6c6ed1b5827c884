"""Duplicates are found, and no song stands on both sides."""

import random

import pytest

from finetuning.config import SplitConfig
from finetuning.duplicates import DuplicateIndex, plain_words
from finetuning.errors import UserError
from split_data import TRAIN, VALIDATION, Index, choose_held_out, decide


def groups_of(*lyrics: str) -> list[int]:
    index = DuplicateIndex(0.5)
    for text in lyrics:
        index.add(text)
    return [index.first_of_group(number) for number in range(len(lyrics))]


def misspelt(lyrics: str, words_changed: int, seed: int) -> str:
    words = lyrics.split()
    for place in random.Random(seed).sample(range(len(words)), words_changed):
        words[place] = words[place] + "x"
    return " ".join(words)


def test_plain_words_have_no_case_accents_or_marks():
    assert plain_words("¡Ñandú, CORAZÓN—roto!") == ["nandu", "corazon", "roto"]


def test_other_spellings_are_the_same_song():
    assert groups_of("¡Ay, corazón!\nno llores más", "AY CORAZON no llores mas", "otra cosa muy distinta es") == [0, 0, 2]


def test_short_songs_are_compared_too():
    assert groups_of("la la", "La, la!", "le le") == [0, 0, 2]


def test_planted_near_duplicates_of_the_sample_are_found_and_nothing_else(sample):
    lyrics = [song.lyrics for song in sample]
    remixes = [misspelt(text, len(text.split()) // 20, seed) for seed, text in enumerate(lyrics)]
    firsts = groups_of(*lyrics, *remixes)
    count = len(lyrics)
    assert firsts[:count] == list(range(count)), "songs of the sample are no duplicates of each other"
    found = sum(firsts[count + number] == number for number in range(count))
    assert found / count >= 0.97


def test_groups_join_over_a_song_in_between():
    words = [f"palabra{number}" for number in range(60)]
    one, between, other = words[:40], words[8:48], words[16:56]
    assert groups_of(" ".join(one), " ".join(other), " ".join(between)) == [0, 0, 0]


def index_of(groups: list[list[int]]) -> Index:
    return Index(songs=sum(map(len, groups)), groups={group[0]: group for group in groups})


def config(**settings) -> SplitConfig:
    return SplitConfig(input=[], **settings)


def test_every_song_goes_somewhere_once_and_parts_are_equal():
    places = decide(index_of([[number] for number in range(103)]), config(seed=3))
    assert sorted(places) == list(range(103))
    sizes = [sum(part == k for part, _ in places.values()) for k in range(4)]
    assert max(sizes) - min(sizes) <= 1
    for k in range(4):
        assert sum(place == (k, VALIDATION) for place in places.values()) == 1  # 5% of 25 or 26


@pytest.mark.parametrize("order", ["shuffled", "given"])
def test_a_group_kept_goes_to_one_side_of_one_part(order):
    groups = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(20)]
    places = decide(index_of(groups), config(duplicates="keep", order=order, validation_fraction=0.3))
    assert len(places) == 60
    for group in groups:
        assert len({places[song] for song in group}) == 1


def test_of_a_group_dropped_the_first_stays():
    places = decide(index_of([[0, 9], [1], [2, 5, 7], [3]]), config(parts=2))
    assert sorted(places) == [0, 1, 2, 3]


def test_given_order_cuts_in_sequence():
    places = decide(index_of([[number] for number in range(40)]), config(order="given"))
    assert [places[number][0] for number in range(40)] == [number // 10 for number in range(40)]


def test_the_seed_decides():
    groups = index_of([[number] for number in range(40)])
    assert decide(groups, config(seed=1)) == decide(groups, config(seed=1))
    assert decide(groups, config(seed=1)) != decide(groups, config(seed=2))


def test_every_part_has_both_sides_even_at_the_least():
    places = decide(index_of([[number] for number in range(8)]), config())
    for k in range(4):
        assert sorted(side for part, side in places.values() if part == k) == [TRAIN, VALIDATION]


@pytest.mark.parametrize("groups", [[[0]], [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]], [[number] for number in range(7)]])
def test_too_few_different_songs_are_refused(groups):
    with pytest.raises(UserError, match="too few for --parts 4"):
        decide(index_of(groups), config())


def test_held_out_songs_are_never_more_than_asked_but_at_least_one():
    groups = [[number * 10 + k for k in range(number % 3 + 1)] for number in range(50)]
    songs = sum(map(len, groups))
    held_out = choose_held_out(groups, 0.2, random.Random(0))
    assert 0 < sum(len(group) for group in groups if group[0] in held_out) <= round(0.2 * songs)
    assert choose_held_out([[0, 1, 2], [3, 4]], 0.1, random.Random(0)) == {3}
