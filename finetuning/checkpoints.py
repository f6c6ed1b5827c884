"""Checkpoints that are whole or passed over: saved beside their place, listed with checksums, then renamed.

Every back end's state goes through Accelerate's `save_state` and `load_state`, so it is written as the engine writes it.
Learning rate, order of songs and random numbers follow from the step, so nothing of them is saved.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from finetuning.errors import UserError
from finetuning.files import flush, flush_tree, sha256_of, to_json

# It warns at each save that GPT-2's embedding and head are one tensor, which is as it should be.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)

_MANIFEST = "manifest.json"
_NAME = "step_{:06d}"
_STEP = re.compile(r"step_\d+")


@dataclass
class TrainingState:
    """What a stage has done, beside the weights: saved in a checkpoint's manifest."""

    completed_steps: int = 0
    tokens: int = 0  # tokens that were predicted
    seconds: float = 0.0  # of training, over all starts
    starts: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)  # all that decides what the steps compute


def save_checkpoint(accelerator: Accelerator, folder: Path, state: TrainingState, keep: int) -> None:
    """Save the state of all prepared objects as `folder/step_N`; then remove all but the newest `keep` checkpoints.

    To be called by all processes together.

    Raises:
        UserError: it can't be written. What was there before is still there.
    """
    final = folder / _NAME.format(state.completed_steps)
    partial = folder / f".{final.name}.partial"
    problem: str | None = None
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except Exception as error:  # torch, safetensors and the engines each have their own for a full disk
        problem = f"{folder}: the checkpoint of step {state.completed_steps} can't be written ({_reason(error, folder)})"
    problem = _first_problem(accelerator, problem)
    if accelerator.is_main_process:
        try:
            if not problem:
                _publish(partial, final, state)
                for old in _surplus(folder, state.completed_steps, keep):
                    _remove(old)
        except OSError as error:
            problem = f"{folder}: the checkpoint of step {state.completed_steps} can't be written ({_reason(error, folder)})"
        if problem:
            shutil.rmtree(partial, ignore_errors=True)
    if problem := _first_problem(accelerator, problem):
        raise UserError(f"{problem}; the checkpoints before it are whole: free some space and run the command again")


def newest_valid_checkpoint(
    accelerator: Accelerator, folder: Path, warn: Callable[[str], None]
) -> tuple[Path, TrainingState] | None:
    """The newest checkpoint whose files are as its manifest lists them, chosen by the main process for all.

    Those that aren't are passed over with a warning.

    Raises:
        UserError: there are checkpoints, and none is valid.
    """
    found: tuple[Path, TrainingState] | None = None
    problem = None
    if accelerator.is_main_process:
        for path in reversed(_by_step(folder)):
            problem, state = verify(path)
            if state is not None:
                found = (path, state)
                break
            warn(f"Warning: {path} is passed over: {problem}")
    choice = [(found, problem)]
    broadcast_object_list(choice)
    found, problem = choice[0]
    if found is None and problem is not None:
        raise UserError(f"{folder}: no checkpoint is whole; bring one back, or give --overwrite to start the stage afresh")
    return found


def unfinished_work(folder: Path) -> TrainingState | None:
    """The state of the newest checkpoint whose manifest can be read; a quick look that verifies no files."""
    for path in reversed(_by_step(folder)):
        try:
            return _state_of(json.loads((path / _MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def verify(checkpoint: Path) -> tuple[str, TrainingState | None]:
    """A checkpoint's state if all its files have the size and checksum of the manifest; otherwise what is wrong."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing", None
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}", None
            if sha256_of(path) != expected["sha256"]:
                return f"{name} has another checksum than when it was written", None
        return "", _state_of(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {_MANIFEST} is missing or broken ({type(error).__name__})", None


def _state_of(manifest: dict[str, Any]) -> TrainingState:
    """A manifest's state; what another version of this project wrote into it besides is left out."""
    known = {each.name for each in fields(TrainingState)}
    return TrainingState(**{name: value for name, value in manifest["state"].items() if name in known})


def _publish(partial: Path, final: Path, state: TrainingState) -> None:
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    (partial / _MANIFEST).write_text(to_json({"state": asdict(state), "files": files}), encoding="utf-8")
    flush_tree(partial)
    if final.exists():  # it failed verification, or this step would not have been done again
        shutil.rmtree(final)
    partial.rename(final)
    flush(final.parent)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill in between leaves none that looks whole."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; leftovers of kills are hidden by their leading dot."""
    return sorted((path for path in folder.glob("step_*") if _STEP.fullmatch(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _surplus(folder: Path, newest_step: int, keep: int) -> list[Path]:
    """What goes when the checkpoint of `newest_step` is whole: all but the `keep` newest up to it.

    One of a later step failed its verification, or the run wouldn't have come to this step again; it goes too.
    """
    checkpoints = _by_step(folder)
    up_to_newest = [path for path in checkpoints if _step_of(path) <= newest_step]
    kept = up_to_newest[-keep:]
    return [path for path in checkpoints if path not in kept]


def _first_problem(accelerator: Accelerator, problem: str | None) -> str | None:
    """What went wrong on any process, told to all."""
    if accelerator.num_processes == 1:
        return problem
    return next((each for each in gather_object([problem]) if each), None)


def _reason(error: BaseException, folder: Path) -> str:
    if shutil.disk_usage(folder).free < 1 << 20:
        return "the disk is full"
    return next(iter(str(error).splitlines()), type(error).__name__)
