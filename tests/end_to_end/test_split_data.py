"""split_data.py as a user runs it: every format, the same bytes each time, what it finds and says."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetuning.corpus import Song, read_split_file
from tests.end_to_end.scripts import ROOT, run, succeed


def write(songs: list[Song], path: Path) -> Path:
    """The songs in the format of the path's ending, as other programs write it."""
    records = [json.loads(song.to_json_line()) for song in songs]
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = [{**record, "feelings": "; ".join(record["feelings"])} for record in records]
            writer = csv.DictWriter(file, records[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        parts = [
            f"Título: {song.title}\r\nArtista: {song.artist}\r\nSentimientos: {', '.join(song.feelings)}\r\n\r\n"
            f"{song.lyrics.replace(chr(10), chr(13) + chr(10))}\r\n<|endoftext|>\r\n"
            for song in songs
        ]
        path.write_bytes("".join(parts).encode())
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["json", "csv", "tsv", "parquet", "txt"])
def test_every_format_gives_the_split_that_jsonl_gives(sample, splits, tmp_path, ending):
    path = write(sample[:44], tmp_path / f"songs.{ending}")
    succeed("split_data.py", "--input", path, "--output_dir", tmp_path / "splits")
    expected, found = content(splits), content(tmp_path / "splits")
    del expected["manifest.json"], found["manifest.json"]
    assert found == expected


def test_the_same_input_and_seed_give_the_same_bytes(songs_file, splits, tmp_path):
    succeed("split_data.py", "--input", songs_file, "--output_dir", tmp_path / "splits")
    assert content(tmp_path / "splits") == content(splits)
    succeed("split_data.py", "--input", songs_file, "--output_dir", tmp_path / "splits", "--seed", 1)
    assert content(tmp_path / "splits") != content(splits)


def test_no_song_is_lost_and_none_stands_twice(sample, splits):
    songs = [
        song for part in range(1, 5) for side in ("train", "validation")
        for song in read_split_file(splits / f"part_{part}" / f"{side}.jsonl")
    ]  # fmt: skip
    assert sorted(songs, key=lambda song: song.title) == sorted(sample[:44], key=lambda song: song.title)


def test_the_manifest_describes_the_parts(splits, sample):
    manifest = json.loads((splits / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["songs_read"] == 44
    assert sum(part["words"] for part in manifest["parts"]) > 0.9 * sum(len(song.lyrics.split()) for song in sample[:44])
    assert all(0 < part["share_of_words_not_in_other_parts"] < 1 for part in manifest["parts"])
    assert set(manifest["files"]) == {f"part_{k}/{side}.jsonl" for k in range(1, 5) for side in ("train", "validation")}


def test_a_part_unlike_the_others_shows(sample, tmp_path):
    foreign = [Song(f"s{i}", "", (), " ".join(f"word{i}x{n}" for n in range(60))) for i in range(10)]
    path = tmp_path / "songs.jsonl"
    path.write_text("".join(song.to_json_line() for song in [*sample[:30], *foreign]), encoding="utf-8")
    succeed("split_data.py", "--input", path, "--output_dir", tmp_path / "splits", "--order", "given")
    parts = json.loads((tmp_path / "splits" / "manifest.json").read_text())["parts"]
    shares = [part["share_of_words_not_in_other_parts"] for part in parts]
    assert max(shares[:3]) < 0.4
    assert shares[3] == 1.0


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_remixes_in_a_folder_of_files_stay_on_one_side(sample, tmp_path, duplicates):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(sample[:20], folder / "a.json")
    remixes = [Song(f"{song.title} (remix)", "DJ", (), song.lyrics.upper() + "\n¡Dale!\n12Embed") for song in sample[:20]]
    write(remixes, folder / "b.csv")
    result = succeed(
        "split_data.py", "--input", folder, "--output_dir", tmp_path / "splits", "--duplicates", duplicates,
        "--validation_fraction", 0.4,
    )  # fmt: skip
    assert "40 songs in 20 groups" in result.out
    assert "Cleaned in 20: '12Embed'" in result.out
    places: dict[str, set] = {}
    count = 0
    for part in range(1, 5):
        for side in ("train", "validation"):
            for song in read_split_file(tmp_path / "splits" / f"part_{part}" / f"{side}.jsonl"):
                places.setdefault(song.title.removesuffix(" (remix)"), set()).add((part, side))
                count += 1
    assert count == (20 if duplicates == "drop" else 40)
    assert all(len(where) == 1 for where in places.values())


def test_broken_output_pipes_leave_no_traceback(songs_file, tmp_path):
    command = f"{sys.executable} {ROOT / 'split_data.py'} --input {songs_file} --output_dir {tmp_path / 's'} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_folder_that_holds_anything_else_is_never_replaced(songs_file, tmp_path):
    (tmp_path / "notes.txt").write_text("tesis")
    refused = run("split_data.py", "--input", songs_file, "--output_dir", tmp_path)
    assert refused.status == 2
    assert "notes.txt, which is no part of a split" in refused.err
    own = tmp_path / "own"
    own.mkdir()
    songs = own / "part_1"
    songs.mkdir()
    (songs / "songs.jsonl").write_bytes(songs_file.read_bytes())
    refused = run("split_data.py", "--input", songs / "songs.jsonl", "--output_dir", own)
    assert refused.status == 2
    assert "the input lies in it" in refused.err
    assert (songs / "songs.jsonl").exists()
