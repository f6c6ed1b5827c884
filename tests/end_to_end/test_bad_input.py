"""Bad input: a line for each mistake that names it and the fix, status 2, no traceback, and nothing on disk has changed."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from finetuning.corpus import Song
from tests.end_to_end.fake_hub import fake_hub
from tests.end_to_end.scripts import Result, environment, run, succeed, tree


def assert_refused(result: Result, *words: str, lines: int = 1) -> None:
    assert result.status == 2, result.out + result.err
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == lines, result.err
    for word in words:
        assert any(word in line for line in errors), (word, errors)


@pytest.fixture
def folder(tmp_path):
    """A folder that must be as it was when the test ends."""
    work = tmp_path / "work"
    work.mkdir()
    return work


def split(folder: Path, content: bytes | str, name: str = "songs.jsonl", *flags: str) -> Result:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = tree(folder)
    result = run("split_data.py", "--input", path, "--output_dir", folder / "splits", *flags)
    assert tree(folder) == before
    return result


def song_lines(count: int, lyrics: str = "uno dos tres {}") -> str:
    return "".join(Song(f"t{i}", "", (), " ".join([lyrics.format(i)] * 3)).to_json_line() for i in range(count))


def test_split_a_missing_file(folder):
    assert_refused(
        run("split_data.py", "--input", folder / "no.json", "--output_dir", folder / "out"), "no.json", "check the path"
    )
    assert tree(folder) == {}


def test_split_an_empty_file(folder):
    assert_refused(split(folder, ""), "songs.jsonl", "the file is empty")


def test_split_broken_json_in_line_37(folder):
    broken = song_lines(36) + '{"title": "roto", "lyrics": "la\n' + song_lines(5)
    assert_refused(split(folder, broken), "songs.jsonl: line 37 is not valid JSON")


def test_split_a_wrong_encoding(folder):
    assert_refused(split(folder, '{"lyrics": "corazón"}\n'.encode("latin-1")), "line 1 is not UTF-8", "iconv")


def test_split_a_csv_without_the_lyrics_column(folder):
    assert_refused(split(folder, "title,letra\na,b\n", "songs.csv"), "'lyrics'", "title, letra", "--lyrics_field")


def test_split_a_field_that_no_song_has(folder):
    assert_refused(split(folder, song_lines(20), "songs.jsonl", "--artist_field", "author"), "--artist_field author")


def test_split_fewer_songs_than_parts(folder):
    assert_refused(split(folder, song_lines(3)), "too few for --parts 4")


def test_split_all_songs_duplicates(folder):
    assert_refused(split(folder, song_lines(40, "siempre la misma letra, siempre")), "1 different songs (of 40 read)")


def test_several_wrong_values_at_once(folder):
    result = split(folder, song_lines(20), "songs.jsonl", "--parts", "0", "--validation_fraction", "2", "--ordr", "given")
    assert_refused(result, "--parts", "--validation_fraction", "--ordr", "did you mean --order?", lines=3)


def test_split_on_a_full_disk(disk_of_64_kib, songs_file):
    result = run("split_data.py", "--input", songs_file, "--output_dir", disk_of_64_kib / "made" / "splits")
    assert_refused(result, "the disk is full", str(disk_of_64_kib))
    assert tree(disk_of_64_kib) == {}


def test_train_on_a_full_disk(disk_of_64_kib, fast):
    assert_refused(run("train.py", "--stage", 1, "--output_dir", disk_of_64_kib / "runs", *fast), "need", "of disk")
    assert tree(disk_of_64_kib) == {}


def test_a_read_only_output_folder(disk_of_64_kib, songs_file, fast):
    subprocess.run(["mount", "-o", "remount,ro", disk_of_64_kib], check=True)
    for result in (
        run("split_data.py", "--input", songs_file, "--output_dir", disk_of_64_kib / "splits"),
        run("train.py", "--stage", 1, "--output_dir", disk_of_64_kib / "runs", *fast),
    ):
        assert_refused(result, "--output_dir", "can't be written to")
    assert tree(disk_of_64_kib) == {}


TRAIN_MISTAKES = {
    "stage 3 without stage 2": (["--stage", 3], "accelerate launch train.py --stage 1 2"),
    "a split that isn't there": (["--stage", 1, "--data_dir", "nowhere"], "python split_data.py --input"),
    "a folder that is no model": (["--stage", 1, "--model_name_or_path", "{folder}"], "not a model folder"),
    "a folder that isn't there": (["--stage", 1, "--model_name_or_path", "./no/model"], "there is no such folder"),
    "a file as output folder": (["--stage", 1, "--output_dir", "{file}/runs"], "is a file, not a folder"),
    "blocks longer than the context": (["--stage", 1, "--block_size", 4096], "128 tokens at most"),
    "stage 0": (["--stage", 0], "at least 1"),
}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_train_mistakes(folder, fast, mistake):
    flags, expected = TRAIN_MISTAKES[mistake]
    (folder / "file").write_text("x")
    flags = [str(flag).format(folder=folder, file=folder / "file") for flag in flags]
    before = tree(folder)
    assert_refused(run("train.py", "--output_dir", folder / "runs", *fast, *flags), expected)
    assert tree(folder) == before


def test_train_mistakes_on_disk_are_reported_together(folder, fast, splits):
    data = shutil.copytree(splits, folder / "splits")
    (data / "part_1" / "train.jsonl").write_text("{")
    (data / "part_2" / "validation.jsonl").unlink()
    before = tree(folder)
    result = run("train.py", "--stage", 1, 2, "--output_dir", folder / "runs", *fast, "--data_dir", data)
    assert_refused(result, "part_1/train.jsonl: line 1", "part_2/validation.jsonl", lines=2)
    assert tree(folder) == before
    result = run("train.py", "--stage", 5, "--output_dir", folder / "runs", *fast)
    assert_refused(result, "has no part 5 (it has 1, 2, 3, 4)", "stage 1 2 3 4 isn't finished", lines=2)


def test_a_model_whose_weights_are_broken(folder, fast, tiny_model):
    model = shutil.copytree(tiny_model, folder / "model")
    (model / "model.safetensors").write_bytes(b"broken")
    result = run("train.py", "--stage", 1, "--output_dir", folder / "runs", *fast, "--model_name_or_path", model)
    assert_refused(result, "can't be loaded")


def test_evaluating_mistakes(folder, splits, fast, songs_file):
    flags = ["--output_dir", folder / "runs", "--data_dir", splits, "--encoder", "embedded"]
    assert_refused(run("evaluate.py", *flags), "stage 1 isn't finished", "train.py --stage 1")
    succeed("train.py", "--stage", 1, "--output_dir", folder / "runs", *fast)
    before = tree(folder)
    assert_refused(run("evaluate.py", *flags, "--stages", 0, 1, 3), "stage 2 3 isn't finished")
    assert_refused(run("evaluate.py", *flags, "--encoder", folder), "not a model folder")
    assert_refused(run("evaluate.py", *flags, "--prompts", folder / "no.txt"), "no such file")
    assert_refused(run("evaluate.py", *flags, "--coherence_unit", "sentence"), "punkt_tab", "compare lines")
    assert tree(folder) == before
    # Another split's held-out songs may be songs that the model has seen.
    other = folder / "other"
    succeed("split_data.py", "--input", songs_file, "--output_dir", other, "--seed", 7)
    assert_refused(run("evaluate.py", *flags, "--data_dir", other), "trained on another split")


def test_an_unreachable_hub_is_said_within_seconds(folder, splits):
    env = environment(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(folder / "hf"))
    started = time.monotonic()
    result = run("train.py", "--stage", 1, "--data_dir", splits, "--output_dir", folder / "runs", env=env)
    assert_refused(result, "datificate/gpt2-small-spanish", "can't be reached", "'embedded'", "local folder")
    assert time.monotonic() - started < 25  # most of it is the start of Python's libraries
    assert not (folder / "runs").exists()


def test_a_model_that_is_cached_needs_no_hub_and_one_that_the_hub_has_not_is_named(folder, splits, tiny_model, fast):
    shutil.copytree(tiny_model, folder / "hub" / "someone" / "tiny")
    flags = ["--stage", 1, "--output_dir", folder / "runs", *fast]
    with fake_hub(folder / "hub") as address:
        env = environment(HF_HUB_OFFLINE="0", HF_ENDPOINT=address, HF_HOME=str(folder / "hf"))
        missing = run("train.py", *flags, "--model_name_or_path", "someone/nothing", env=env)
        assert_refused(missing, "someone/nothing", "no such model")
        succeed("train.py", *flags, "--model_name_or_path", "someone/tiny", env=env)
    # The hub is gone; the model is in the cache.
    again = succeed("train.py", *flags, "--model_name_or_path", "someone/tiny", "--overwrite", env=env)
    assert "Stage 1 is finished" in again.out
    offline = environment(HF_ENDPOINT=address, HF_HOME=str(folder / "hf"))
    refused = run("train.py", *flags, "--model_name_or_path", "someone/other", env=offline)
    assert_refused(refused, "HF_HUB_OFFLINE")


@pytest.mark.parametrize("script", ["split_data.py", "train.py", "evaluate.py"])
def test_help_and_an_unknown_flag(script):
    assert "--print_config" in succeed(script, "--help").out
    assert_refused(run(script, "--nonsense", "1", *(["--input", "x.json"] if script == "split_data.py" else []),
                       *(["--stage", "1"] if script == "train.py" else [])), "--nonsense: unknown flag")  # fmt: skip
