"""Pure functions on texts: how diverse they are, and how their lines hang together. No models, no files.

What a figure can't be computed for is None, not 0: a text without words has no diversity, a single line no coherence.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from nltk.tokenize import wordpunct_tokenize
from nltk.util import ngrams


def words_of(text: str) -> list[str]:
    """The lower-cased words of a text, by NLTK; punctuation is left out.

    NLTK's wordpunct_tokenize, since its word_tokenize leaves ¿ and ¡ on their words: "¿dónde" were not "dónde".
    """
    return [word for word in wordpunct_tokenize(text.lower()) if any(map(str.isalnum, word))]


def cut_to_words(text: str, count: int) -> str:
    """The text up to its `count`-th word between blanks, line ends kept."""
    if count <= 0:
        return ""
    for number, match in enumerate(re.finditer(r"\S+", text), start=1):
        if number == count:
            return text[: match.end()]
    return text


def count_words(text: str) -> int:
    """How many words between blanks a text has: what `cut_to_words` counts."""
    return len(text.split())


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words / all n-grams of words, over all texts together; no n-gram spans two texts.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.
    It falls as texts grow, so compare texts of equal length only. None where there is no n-gram.
    """
    grams = [gram for text in texts for gram in ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def lexical_diversity(text: str) -> float | None:
    """Different words / words of one text (the type-token ratio). None where there is no word.

    It falls as a text grows, so compare texts of equal length only.
    """
    words = words_of(text)
    return len(set(words)) / len(words) if words else None


def lines_of(text: str) -> list[str]:
    """The lines of a text that hold a letter or digit, without blanks around them."""
    return [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]


def coherence(embeddings: np.ndarray) -> float | None:
    """Mean cosine similarity of consecutive units (lines or sentences).

    Args:
        embeddings: shape (units, dimensions), one row a unit, in the text's order.

    Returns:
        A figure from -1 to 1; None for fewer than two units. It has no zero of its own: unrelated lines of one language
        score well above 0, so compare it with that of human songs.
    """
    if len(embeddings) < 2:
        return None
    lengths = np.linalg.norm(embeddings, axis=1)
    products = (embeddings[:-1] * embeddings[1:]).sum(axis=1)
    return float(np.mean(products / np.maximum(lengths[:-1] * lengths[1:], 1e-12)))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are; None where there are none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None
