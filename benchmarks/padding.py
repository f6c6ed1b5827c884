"""How much of the arithmetic goes into padding, in three ways of making batches from the same songs.

    python benchmarks/padding.py [SONGS]

By default on the embedded sample with the embedded model's tokenizer. Counts tokens; runs no model.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tabulate import tabulate

from finetuning.batches import tokenize_song
from finetuning.config import SONG_HEADER
from finetuning.corpus import FieldNames, read_songs
from finetuning.embedded import SAMPLE_SONGS, embedded_model
from finetuning.models import load_tokenizer

LINE_LENGTH = 512  # what the original pads every line of text to
BATCH = 4


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE_SONGS
    tokenizer = load_tokenizer(str(embedded_model()), "embedded")
    songs = [song for song, _ in read_songs(source, FieldNames())]
    lines = [line for song in songs for line in song.lyrics.splitlines() if line.strip()]
    line_lengths = [min(LINE_LENGTH, len(tokenizer.encode(line)) + 1) for line in lines]
    song_lengths = [len(tokenize_song(song, tokenizer, SONG_HEADER)[0]) for song in songs]
    random.Random(0).shuffle(song_lengths)
    batches = [song_lengths[start : start + BATCH] for start in range(0, len(song_lengths), BATCH)]
    rows = [
        ("every line an example, padded to 512", sum(line_lengths), LINE_LENGTH * len(lines)),
        ("every song an example, padded to the longest of 4", sum(song_lengths), sum(max(b) * len(b) for b in batches)),
        ("songs end to end (this project)", sum(song_lengths), sum(song_lengths)),
    ]
    headings = ["Batches", "Real tokens", "Tokens computed", "Padding"]
    table = [(name, f"{real:,}", f"{computed:,}", f"{1 - real / computed:.1%}") for name, real, computed in rows]
    print(tabulate(table, headings, tablefmt="github", stralign="right"))


if __name__ == "__main__":
    main()
