"""Known answers, worked by hand, and what must hold for any text."""

import math

import numpy as np
import pytest

from finetuning.text_metrics import (
    coherence,
    count_words,
    cut_to_words,
    distinct_n,
    lexical_diversity,
    lines_of,
    mean,
    words_of,
)


def test_words_are_lower_case_with_accents_and_without_marks():
    assert words_of("¿Dónde ESTÁ,\nniña?") == ["dónde", "está", "niña"]


def test_distinct_by_hand():
    # sol sol mar sol: words {sol, mar} of 4; pairs (sol sol) (sol mar) (mar sol), 3 of 3; triples 2 of 2
    assert distinct_n(["sol sol mar sol"], 1) == 2 / 4
    assert distinct_n(["sol sol mar sol"], 2) == 3 / 3
    assert distinct_n(["sol sol mar sol"], 3) == 2 / 2
    # la la la la: one pair of three
    assert distinct_n(["la la la la"], 2) == 1 / 3


def test_distinct_counts_over_all_texts_but_no_pair_spans_two():
    # pairs: (a b), (b a): with a pair across the texts there would be three
    assert distinct_n(["a b", "b a"], 2) == 2 / 2
    assert distinct_n(["a b", "a b"], 2) == 1 / 2


def test_distinct_falls_when_a_text_is_doubled():
    text = "la noche trae su canto y el río lo devuelve"
    assert distinct_n([f"{text} {text}"], 1) == distinct_n([text], 1) / 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_of_nothing_is_none(n):
    assert distinct_n([], n) is None
    assert distinct_n([""], n) is None


def test_distinct_of_one_word():
    assert distinct_n(["sol"], 1) == 1.0
    assert distinct_n(["sol"], 2) is None


def test_101_different_words_score_one_whatever_they_say():
    assert distinct_n([" ".join(f"palabra{i}" for i in range(101))], 2) == 1.0


def test_lexical_diversity_by_hand():
    assert lexical_diversity("Sol, sol; ¡mar!") == 2 / 3  # marks don't count, case doesn't either
    assert lexical_diversity("uno") == 1.0
    assert lexical_diversity("") is None
    assert lexical_diversity("¡...!") is None


def test_accents_make_different_words():
    assert lexical_diversity("mas más") == 1.0


def test_coherence_by_hand():
    # cosines: 45 degrees, then 45 degrees
    vectors = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    assert coherence(vectors) == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert coherence(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])) == pytest.approx(0.0, abs=1e-12)
    assert coherence(np.array([[2.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-1.0)


def test_coherence_of_one_line_or_none_is_none():
    assert coherence(np.zeros((1, 3))) is None
    assert coherence(np.zeros((0, 3))) is None


def test_coherence_of_a_zero_vector_is_a_number():
    assert coherence(np.array([[0.0, 0.0], [1.0, 0.0]])) == 0.0


def test_lines_without_letters_are_no_lines():
    assert lines_of("uno\n\n  dos  \n...\n") == ["uno", "dos"]
    assert lines_of("") == []


def test_cutting_keeps_line_ends_and_counts_as_count_words_does():
    text = "uno dos\n\ntres, cuatro"
    assert cut_to_words(text, 3) == "uno dos\n\ntres,"
    assert cut_to_words(text, 0) == ""
    assert cut_to_words(text, 9) == text
    for count in range(count_words(text) + 1):
        assert count_words(cut_to_words(text, count)) == count


def test_mean_leaves_out_what_there_is_not():
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None
