"""Songs that are the same, or nearly: other spellings, remixes, repeated uploads.

Two songs are nearly the same where the Jaccard similarity of their sets of word triples reaches a threshold. It is
estimated by MinHash (Broder 1997) with 128 permutations, whose standard error is at most 0.044; candidates are found by
locality-sensitive hashing in 32 bands of 4 rows, which finds a pair of similarity 0.5, 0.6, 0.7 with probability 0.87,
0.99, 0.9998.
"""

import hashlib
import re
import unicodedata

from rensa import RMinHash, RMinHashLSH

_PERMUTATIONS = 128
_BANDS = 32
_SHINGLE_WORDS = 3


def plain_words(text: str) -> list[str]:
    """The words of a text without case, accents and punctuation."""
    without_accents = "".join(
        character for character in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(character)
    )
    return re.findall(r"\w+", without_accents)


class DuplicateIndex:
    """Groups of nearly equal songs, found while songs are added one by one.

    Memory: about 1.5 kB a song, whatever its length.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._near = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
        self._sketches: dict[int, RMinHash] = {}
        self._exact: dict[bytes, int] = {}  # a digest of the words -> the first song that has them
        self._parent: list[int] = []  # a forest: a song's way to the first song of its group

    def add(self, lyrics: str) -> None:
        """Add the next song; songs are numbered from 0 as they come."""
        number = len(self._parent)
        self._parent.append(number)
        words = plain_words(lyrics)
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        first = self._exact.setdefault(digest, number)
        if first != number:
            self._join(first, number)  # the first's neighbours are its neighbours
            return
        count = max(1, len(words) - _SHINGLE_WORDS + 1)
        shingles = [" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(count)]
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=0)
        sketch.update(shingles)
        for other in self._near.query(sketch):
            if self._sketches[other].jaccard(sketch) >= self._threshold:
                self._join(other, number)
        self._near.insert(number, sketch)
        self._sketches[number] = sketch

    def first_of_group(self, number: int) -> int:
        """The first song of the group that song `number` belongs to: itself, where it is alone or first."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self.first_of_group(one), self.first_of_group(other)))
        self._parent[second] = first
