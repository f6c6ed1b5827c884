"""Split a corpus of songs into parts, one for each stage, each with training and held-out songs.

The corpus is read twice, as a stream: once to find out what belongs together and decide where each song goes, once to
write it there. In between, only an index of it is in memory.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from finetuning.cleaning import clean
from finetuning.command_line import flags_of, parse, to_plain
from finetuning.config import SplitConfig
from finetuning.corpus import FieldNames, Song, find_sources, inside, read_songs
from finetuning.duplicates import DuplicateIndex, plain_words
from finetuning.errors import UserError, require_writable, run_script
from finetuning.files import sha256_of, to_json, whole_folder
from finetuning.progress import Progress

TRAIN, VALIDATION = "train", "validation"


@dataclass
class Index:
    """What the first reading finds out. Songs are numbered from 0 in the order of the sources."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    cleaning: Counter[str] = field(default_factory=Counter)
    songs: int = 0
    without_lyrics: int = 0
    groups: dict[int, list[int]] = field(default_factory=dict)  # first song of a group of near-duplicates -> all of them


def main() -> None:
    config = parse(SplitConfig)
    sources = find_sources(config.input, config.output_dir)
    check_output_dir(config.output_dir, sources)

    index = build_index(sources, config)
    print_index(index, config)
    destinations = decide(index, config)
    with whole_folder(config.output_dir.resolve()) as folder:
        parts = write_parts(folder, sources, destinations, config)
        (folder / "manifest.json").write_text(to_json(manifest(folder, index, parts, config)), encoding="utf-8")
    print_parts(parts)
    data_dir = flags_of(config, "output_dir").replace("--output_dir", "--data_dir")
    print(f"\nWritten: {config.output_dir}. Next: accelerate launch train.py --stage 1{data_dir}")


def check_output_dir(folder: Path, sources: list[Path]) -> None:
    """Refuse a folder that can't be written, or that holds anything but an earlier split: it will be replaced whole."""
    require_writable(folder, "--output_dir")
    if any(inside(source, folder) for source in sources):
        raise UserError(f"--output_dir {folder}: the input lies in it, and would be replaced; name another folder")
    others = [
        path.name for path in folder.glob("*") if path.name != "manifest.json" and not re.fullmatch(r"part_\d+", path.name)
    ]
    if others:
        raise UserError(f"--output_dir {folder}: it holds {min(others)}, which is no part of a split; name another folder")


def cleaned_songs(sources: list[Path], config: SplitConfig, title: str, counts: Counter[str]) -> Iterator[tuple[Path, Song]]:
    """Every song of the sources, cleaned, with its source."""
    names = FieldNames(config.title_field, config.artist_field, config.feelings_field, config.lyrics_field)
    progress = Progress(sum(source.stat().st_size for source in sources), "B", title)
    bytes_before = 0
    for source in sources:
        for song, position in read_songs(source, names):
            yield source, clean(song, config.section_marks == "remove", counts)
            progress.update(bytes_before + position)
        bytes_before += source.stat().st_size
    progress.close()


def build_index(sources: list[Path], config: SplitConfig) -> Index:
    """The first reading: count, and group the songs that are nearly the same."""
    index = Index()
    duplicates = DuplicateIndex(config.duplicate_threshold)
    with_lyrics: list[int] = []  # the duplicate index's number of a song -> its number here
    songs_of: Counter[Path] = Counter()
    known: Counter[str] = Counter()
    for source, song in cleaned_songs(sources, config, "Reading", index.cleaning):
        songs_of[source] += 1
        known.update({"title": bool(song.title), "artist": bool(song.artist), "feelings": bool(song.feelings)})
        if plain_words(song.lyrics):
            duplicates.add(song.lyrics)
            with_lyrics.append(index.songs)
        else:
            index.without_lyrics += 1
        index.songs += 1

    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number, song_number in enumerate(with_lyrics):
        groups[with_lyrics[duplicates.first_of_group(number)]].append(song_number)
    index.groups = dict(groups)
    index.sources = [
        {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path), "songs": songs_of[path]}
        for path in sources
    ]
    # A misspelt field of titles would silently give songs without titles: the flag was set, so something was meant.
    fields = {"title": config.title_field, "artist": config.artist_field, "feelings": config.feelings_field}
    UserError.of_all(
        f"--{name}_field {asked}: no song has such a field; check its name, or leave the flag out"
        for name, asked in fields.items()
        if asked != name and not known[name]
    )
    return index


def decide(index: Index, config: SplitConfig) -> dict[int, tuple[int, str]]:
    """Where each song goes: its number -> (part from 0, side). Dropped songs are left out.

    A group of near-duplicates goes to one side of one part whole, so no held-out song was ever trained on.
    """
    groups = [songs if config.duplicates == "keep" else songs[:1] for songs in index.groups.values()]
    if len(groups) < 2 * config.parts:
        raise UserError(
            f"{len(groups)} different songs (of {index.songs} read) are too few for --parts {config.parts}, which need "
            f"{2 * config.parts}: one to train on and one to hold out each; add songs or ask for fewer parts"
        )
    parts: list[list[list[int]]] = [[] for _ in range(config.parts)]
    if config.order == "shuffled":
        random.Random(f"parts {config.seed}").shuffle(groups)
        sizes = [0] * config.parts
        for group in groups:
            smallest = sizes.index(min(sizes))
            parts[smallest].append(group)
            sizes[smallest] += len(group)
    else:
        total, before = sum(map(len, groups)), 0
        for group in groups:
            parts[before * config.parts // total].append(group)
            before += len(group)

    destinations: dict[int, tuple[int, str]] = {}
    for part, part_groups in enumerate(parts):
        if len(part_groups) < 2:
            raise UserError(
                f"part {part + 1} has {len(part_groups)} different songs, but needs 2, one of them held out; "
                "use --duplicates drop, --order shuffled or fewer --parts"
            )
        held_out = choose_held_out(part_groups, config.validation_fraction, random.Random(f"{part} {config.seed}"))
        for group in part_groups:
            for song in group:
                destinations[song] = (part, VALIDATION if group[0] in held_out else TRAIN)
    return destinations


def choose_held_out(groups: list[list[int]], fraction: float, random_numbers: random.Random) -> set[int]:
    """The groups of a part to hold out, by their first songs: `fraction` of its songs or a little less, but at least one."""
    wanted = max(1, round(fraction * sum(map(len, groups))))
    held_out: set[int] = set()
    count = 0
    for group in random_numbers.sample(groups, len(groups)):
        if count + len(group) <= wanted and len(held_out) < len(groups) - 1:
            held_out.add(group[0])
            count += len(group)
    return held_out or {min(groups, key=len)[0]}


def write_parts(
    folder: Path, sources: list[Path], destinations: dict[int, tuple[int, str]], config: SplitConfig
) -> list[dict[str, Any]]:
    """The second reading: write each song where it goes, and describe the parts."""
    files = {}
    counts: list[Counter[str]] = [Counter() for _ in range(config.parts)]
    words: defaultdict[str, list[int]] = defaultdict(lambda: [0] * config.parts)  # a word -> its count in each part
    number = -1
    with ExitStack() as stack:
        for part in range(config.parts):
            (folder / f"part_{part + 1}").mkdir()
            for side in (TRAIN, VALIDATION):
                path = folder / f"part_{part + 1}" / f"{side}.jsonl"
                files[part, side] = stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
        for number, (_, song) in enumerate(cleaned_songs(sources, config, "Writing", Counter())):
            if number not in destinations:
                continue
            part, side = destinations[number]
            files[part, side].write(song.to_json_line())
            song_words = plain_words(song.lyrics)
            counts[part].update(
                {
                    f"{side}_songs": 1,
                    "lines": len(list(filter(str.strip, song.lyrics.split("\n")))),
                    "words": len(song_words),
                }
            )
            for word in song_words:
                words[word][part] += 1
    if max(destinations) > number:
        raise UserError("the input has changed while it was read; run the command again")

    only_here = [0] * config.parts
    for by_part in words.values():
        if by_part.count(0) == config.parts - 1:
            part = next(part for part, count in enumerate(by_part) if count)
            only_here[part] += by_part[part]
    return [
        {
            "part": part + 1,
            "train_songs": count["train_songs"],
            "validation_songs": count["validation_songs"],
            "lines": count["lines"],
            "words": count["words"],
            "mean_words": round(count["words"] / (count["train_songs"] + count["validation_songs"]), 1),
            "share_of_words_not_in_other_parts": round(only_here[part] / count["words"], 4),
        }
        for part, count in enumerate(counts)
    ]


def manifest(folder: Path, index: Index, parts: list[dict[str, Any]], config: SplitConfig) -> dict[str, Any]:
    """All that is needed to make the same split again, and to see that this is it. Nothing in it depends on the time."""
    settings = to_plain(config)
    del settings["output_dir"]
    return {
        "sources": index.sources,
        "settings": settings,
        "songs_read": index.songs,
        "songs_without_lyrics": index.without_lyrics,
        "songs_with_near_duplicates": sum(len(group) for group in index.groups.values() if len(group) > 1),
        "groups_of_near_duplicates": sum(len(group) > 1 for group in index.groups.values()),
        "songs_changed_by_cleaning": {what: times for what, times in sorted(index.cleaning.items()) if times},
        "parts": parts,
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(folder.rglob("*.jsonl"))
        },
        "versions": {package: version(package) for package in ("ijson", "pyarrow", "rensa")},
    }


def print_index(index: Index, config: SplitConfig) -> None:
    """What the first reading found, in words."""
    print(f"Read {index.songs:,} songs from {len(index.sources)} file(s).")
    for what, times in index.cleaning.most_common():
        if times:
            print(f"  Cleaned in {times:,}: {what}")
    if index.without_lyrics:
        print(f"  Left out {index.without_lyrics:,} without lyrics")
    groups = [group for group in index.groups.values() if len(group) > 1]
    if groups:
        songs = sum(map(len, groups))
        done = (
            f"{songs - len(groups):,} dropped" if config.duplicates == "drop" else "kept, each group on one side of one part"
        )
        print(f"  Near-duplicates: {songs:,} songs in {len(groups):,} groups, {done}")


def print_parts(parts: list[dict[str, Any]]) -> None:
    """The table of the parts."""
    columns = {
        "Part": [row["part"] for row in parts],
        "Training": [f"{row['train_songs']:,}" for row in parts],
        "Held out": [f"{row['validation_songs']:,}" for row in parts],
        "Lines": [f"{row['lines']:,}" for row in parts],
        "Words": [f"{row['words']:,}" for row in parts],
        "Words a song": [f"{row['mean_words']:.1f}" for row in parts],
        "Words in no other part": [f"{row['share_of_words_not_in_other_parts']:.1%}" for row in parts],
    }
    print("\n" + tabulate(columns, headers="keys", stralign="right", disable_numparse=True))


if __name__ == "__main__":
    run_script(main)
