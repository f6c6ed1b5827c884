"""What a stage tells while it runs: metrics.jsonl (a line a step, always), the progress line, TensorBoard and W&B.

Losses and gradient norms stay on the device until they are written, once a second or so, so that no step waits for them.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker

from finetuning.errors import UserError
from finetuning.files import write_whole
from finetuning.progress import Progress
from finetuning.run_folder import StageFolder

_SECONDS_BETWEEN_WRITES = 1.0
_WANDB_SECONDS_TO_CONNECT = 15.0
_WANDB_PROJECT = "lyrics-finetuning"


class StepLog:
    """Collects each step's figures and passes them on in batches. Only the main process writes."""

    def __init__(
        self, accelerator: Accelerator, metrics_file: Path, progress: Progress, completed_steps: int, logging_steps: int
    ) -> None:
        self._accelerator = accelerator
        self._file = metrics_file
        self._progress = progress
        self._logging_steps = logging_steps
        self._waiting: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = []
        self._last_write = time.monotonic()
        self._rate_since = time.monotonic()
        self._newest = ""
        self._said_step = completed_steps
        if accelerator.is_main_process:
            _drop_lines_after(metrics_file, completed_steps)

    def step(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, **figures: float) -> None:
        """Note step number `step` (from 1): its loss and gradient norm as they lie on the device, and plain figures."""
        self._waiting.append(({"step": step, **figures}, loss, grad_norm))
        log_line_due = step % self._logging_steps == 0
        if log_line_due or time.monotonic() - self._last_write >= _SECONDS_BETWEEN_WRITES:
            self.write()
        if log_line_due:
            self.log_line()

    def validation(self, step: int, val_loss: float, tokens: int) -> None:
        """Note the loss on held-out songs after `step` steps."""
        self.write()
        self._pass_on([{"step": step, "val_loss": val_loss, "val_tokens": tokens}])

    def write(self) -> None:
        """Write what waits. Reads the waiting losses from the device, all at once."""
        self._last_write = time.monotonic()
        if not self._waiting:
            return
        tensors = [torch.stack([loss.float(), norm.float()]) for _, loss, norm in self._waiting]
        values = torch.stack(tensors).tolist()
        lines = [
            {"step": figures["step"], "loss": loss, "grad_norm": norm, **figures}
            for (figures, _, _), (loss, norm) in zip(self._waiting, values, strict=True)
        ]
        self._waiting.clear()
        self._pass_on(lines)
        if diverged := [line["step"] for line in lines if not math.isfinite(line["loss"])]:
            raise UserError(
                f"the training has diverged: the loss of step {diverged[0]} is not a number; lower --learning_rate and give "
                "--overwrite (what was finished before still stands)"
            )
        # By the clock, since a step's own seconds end before the device has done its work.
        rate = sum(line["tokens"] for line in lines) / max(1e-9, time.monotonic() - self._rate_since)
        self._rate_since = time.monotonic()
        self._newest = f"loss {values[-1][0]:.3f}, {rate:,.0f} tokens/s"
        self._progress.update(lines[-1]["step"], self._newest)

    def log_line(self) -> None:
        """Print where the training is, as a line that stays; once a step."""
        if self._said_step == self._progress.done:
            return
        self._said_step = self._progress.done
        self._progress.say(f"step {self._progress.done:,} of {self._progress.total:,}: {self._newest}")

    def _pass_on(self, lines: list[dict[str, Any]]) -> None:
        if self._accelerator.is_main_process:
            with open(self._file, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        for tracker in list(self._accelerator.trackers):
            try:
                for line in lines:
                    figures = {name: value for name, value in line.items() if name != "step"}
                    tracker.log(figures, step=line["step"])
            except Exception as error:  # each tracker has its own, and none is worth the training
                self._accelerator.trackers.remove(tracker)
                self._progress.say(f"Warning: the training goes on without {tracker.name}: {_first_line(error)}")


def _drop_lines_after(metrics_file: Path, completed_steps: int) -> None:
    """Take out the lines of steps that a resumed stage does again, and one that a kill cut short."""
    if not metrics_file.exists():
        return
    kept = []
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= completed_steps:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    write_whole(metrics_file, "".join(kept))


def read_metrics(metrics_file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where there is no such file."""
    if not metrics_file.exists():
        return []
    return [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]


def start_trackers(
    accelerator: Accelerator,
    names: list[str],
    folder: StageFolder,
    *,
    run_title: str,
    settings: dict[str, Any],
    completed_steps: int,
    warn: Callable[[str], None],
) -> None:
    """Start Accelerate's trackers, by name. One that can't start costs a warning line, never the training."""
    accelerator.trackers = []
    for name in names:
        try:
            if name == "tensorboard":
                # Steps after the checkpoint are done again: purge_step has them shown once.
                tracker = TensorBoardTracker("tensorboard", folder.path, purge_step=completed_steps + 1)
                tracker.start()
            else:
                tracker = WandBTracker(_WANDB_PROJECT, **_wandb_arguments(accelerator, folder, run_title))
                tracker.start()
                tracker.store_init_configuration(settings)
            accelerator.trackers.append(tracker)
        except Exception as error:  # each tracker has its own
            warn(f"Warning: the training goes on without {name}: {_first_line(error)}")


def finish_trackers(accelerator: Accelerator) -> None:
    """Have the trackers write all they have. (Accelerate's end_training would end the processes' group too.)"""
    for tracker in accelerator.trackers:
        with suppress(Exception):
            tracker.finish()
    accelerator.trackers = []


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _wandb_arguments(accelerator: Accelerator, folder: StageFolder, run_title: str) -> dict[str, Any]:
    """What wandb.init is given. A stage has one id for all its starts, so that a resumed stage goes on in its run.

    Raises:
        RuntimeError: there is no API key. Left to itself, W&B would ask for one on the terminal, and wait.
    """
    import wandb

    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    if not offline and not wandb.api.api_key:
        raise RuntimeError("there is no API key; run 'wandb login', or set WANDB_MODE=offline")
    if accelerator.is_main_process and not folder.wandb_run.exists():
        write_whole(folder.wandb_run, secrets.token_hex(4) + "\n")
    return {
        "id": folder.wandb_run.read_text(encoding="utf-8").strip() if accelerator.is_main_process else None,
        "resume": "allow",
        "name": run_title,
        "dir": str(folder.path),
        "settings": wandb.Settings(init_timeout=_WANDB_SECONDS_TO_CONNECT, silent=True),
    }
