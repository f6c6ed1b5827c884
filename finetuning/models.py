"""Models by name: of the hub, in a local folder, or embedded; and one clear line where there is none."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from finetuning.batches import pack
from finetuning.embedded import EMBEDDED, embedded_encoder, embedded_model
from finetuning.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_HUB_TIMEOUT_SECONDS = 5.0
_OFFLINE_WAYS_OUT = "use 'embedded', or name a local folder that holds the model"

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads don't survive a fork, and it says so at length
transformers.logging.set_verbosity_error()  # what it would warn of is checked here or said by the scripts
transformers.logging.disable_progress_bar()


def find_causal_lm(name_or_path: str, flag: str) -> str:
    """What `from_pretrained` is to be given for a model's name: a folder, or a name of the hub that can be had.

    Raises:
        UserError: there is no such model, or the hub can't be reached and the model isn't cached.
    """
    if name_or_path == EMBEDDED:
        return str(embedded_model())
    return _find(name_or_path, flag, "config.json")


def find_encoder(name_or_path: str, flag: str) -> str:
    """As `find_causal_lm`, for a sentence-transformers encoder."""
    if name_or_path == EMBEDDED:
        return str(embedded_encoder())
    return _find(name_or_path, flag, "modules.json")


def _find(name_or_path: str, flag: str, needed_file: str) -> str:
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / needed_file).is_file():
            raise UserError(
                f"{flag} {name_or_path}: not a model folder, it has no {needed_file}; name the model's own folder"
            )
        return name_or_path
    if folder.exists():
        raise UserError(f"{flag} {name_or_path}: this is a file; name the model's folder")
    if name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~")):
        raise UserError(f"{flag} {name_or_path}: there is no such folder; check the path")
    _require_on_hub(name_or_path, flag, needed_file)
    return name_or_path


def _require_on_hub(name: str, flag: str, needed_file: str) -> None:
    """Ask the hub once, with a short timeout: left to itself, `from_pretrained` retries for up to a minute."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        has_weights = any(cached.glob("*.safetensors")) or any(cached.glob("pytorch_model*.bin"))
        if (cached / needed_file).exists() and has_weights:
            return
    except HFValidationError:
        raise UserError(f"{flag} {name}: neither a folder nor a name of the form 'owner/model'; check it") from None
    except Exception:  # not cached: the hub is asked
        pass
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{flag} {name}: not in the local cache, and HF_HUB_OFFLINE is set; download it first, {_OFFLINE_WAYS_OUT}"
        )
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise UserError(f"{flag} {name}: access to this model must be asked for on {constants.ENDPOINT}/{name}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{flag} {name}: the hub ({constants.ENDPOINT}) has no such model; check the name") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise UserError(
            f"{flag} {name}: the hub ({constants.ENDPOINT}) answers with an error ({status}); try later, {_OFFLINE_WAYS_OUT}"
        ) from None
    except Exception as error:  # whatever the HTTP library of the day raises
        raise UserError(
            f"{flag} {name}: the hub ({constants.ENDPOINT}) can't be reached ({type(error).__name__}) and the model isn't "
            f"cached; {_OFFLINE_WAYS_OUT}"
        ) from None


def load_tokenizer(found: str, flag: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that `find_causal_lm` found.

    Raises:
        UserError: there is none, or it has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(found)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{flag} {found}: its tokenizer can't be loaded ({_first_line(error)}); name another model"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {found}: its tokenizer has no end-of-text token; name a causal language model")
    return tokenizer


def context_length(found: str, flag: str) -> int:
    """How many tokens the model sees at once.

    Raises:
        UserError: its configuration can't be read.
    """
    try:
        config = AutoConfig.from_pretrained(found)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {found}: not a model ({_first_line(error)}); name a causal language model") from None
    return int(getattr(config, "max_position_embeddings", 1024))


def count_parameters(found: str, flag: str) -> int:
    """How many parameters the model has, without loading them.

    Raises:
        UserError: its configuration is not a causal language model's.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(found))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {found}: not a causal language model ({_first_line(error)}); name another model") from None
    return sum(parameter.numel() for parameter in model.parameters())


def load_causal_lm(found: str, flag: str) -> PreTrainedModel:
    """The model that `find_causal_lm` found, in fp32.

    Raises:
        UserError: it can't be loaded as a causal language model.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
    except Exception as error:  # safetensors, torch and transformers each raise their own
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{flag} {found}: the model can't be loaded ({_first_line(error)}); name another one") from None


def load_encoder(found: str, flag: str, device: torch.device) -> "SentenceTransformer":
    """The sentence encoder that `find_encoder` found.

    Raises:
        UserError: it can't be loaded.
    """
    from sentence_transformers import SentenceTransformer  # takes seconds, and only evaluate.py needs it

    try:
        return SentenceTransformer(found, device=str(device))
    except Exception as error:
        raise UserError(f"{flag} {found}: the encoder can't be loaded ({_first_line(error)}); name another one") from None


def require_songs_apart(model: PreTrainedModel, flag: str) -> None:
    """Make sure that the model keeps the songs of a packed row apart by their positions alone, as GPT-2 and Llama do.

    Raises:
        UserError: a song's logits depend on the song before it.
    """
    one, other = list(range(5, 25)), list(range(30, 42))
    model.eval()
    with torch.no_grad():
        row, alone = pack([one, other]), pack([other])
        together = model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False).logits[0, len(one) :]
        expected = model(input_ids=alone.input_ids, position_ids=alone.position_ids, use_cache=False).logits[0]
    if (together - expected).abs().max() > 1e-3 * expected.abs().max():
        raise UserError(
            f"{flag} {model.config.model_type}: models of this kind let songs that lie in one row see each other; choose "
            "one that keeps them apart, such as GPT-2, GPT-NeoX, Llama or Qwen2"
        )


def weights_checksum(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over a model's tensors, whatever the files they came from.

    Each different tensor counts once: whether two that are tied stand in a state dict once or twice depends on who made it.
    """
    digests = set()
    for tensor in weights.values():
        digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        digests.add(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
