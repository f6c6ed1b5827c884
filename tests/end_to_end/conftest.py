"""A small split of the sample, made once by split_data.py itself."""

from pathlib import Path

import pytest

from finetuning.corpus import Song
from tests.end_to_end.scripts import succeed


@pytest.fixture(scope="session")
def songs_file(tmp_path_factory: pytest.TempPathFactory, sample: list[Song]) -> Path:
    """44 songs of the sample as JSONL."""
    path = tmp_path_factory.mktemp("songs") / "songs.jsonl"
    path.write_text("".join(song.to_json_line() for song in sample[:44]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def splits(songs_file: Path) -> Path:
    """Four parts of 10 training songs and one held out."""
    folder = songs_file.parent / "splits"
    succeed("split_data.py", "--input", songs_file, "--output_dir", folder)
    return folder


@pytest.fixture(scope="session")
def fast(tiny_model: Path, splits: Path) -> list[str]:
    """Flags of a training that takes a second."""
    return ["--data_dir", splits, "--model_name_or_path", tiny_model, "--warmup_steps", "2", "--learning_rate", "1e-3"]
