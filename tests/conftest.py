"""What several tests need: songs, a split of them, a tiny model without dropout, a cache of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetuning.corpus import FieldNames, Song, read_songs
from finetuning.embedded import SAMPLE_SONGS, embedded_model
from tests.end_to_end.scripts import succeed

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers of two threads each would wait for each other
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for this session, here and in the scripts that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    old = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if old is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = old


@pytest.fixture(scope="session")
def sample() -> list[Song]:
    """The sample's songs."""
    return [song for song, _ in read_songs(SAMPLE_SONGS, FieldNames())]


@pytest.fixture(scope="session")
def embedded(cache: Path) -> Path:
    """The folder of the embedded base model."""
    return embedded_model()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """A GPT-2 of 0.3 million parameters, context 128, no dropout; its padding token is not its end of text."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


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


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a given size, mounted on a new folder; the test is skipped where that isn't permitted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk_of_64_kib(tmp_path: Path) -> Iterator[Path]:
    """A disk too small for any model, or for a split of the sample."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


@pytest.fixture
def disk_of_256_kib(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for some tiny checkpoints."""
    with small_disk(tmp_path / "disk", "256k") as disk:
        yield disk
