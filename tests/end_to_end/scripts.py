"""Running the three scripts as a user does: as processes, with what they print and their exit status."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
ONE_CPU = ROOT / "accelerate_configs" / "cpu.yaml"


@dataclass
class Result:
    status: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, never reaching for the hub or W&B unless a test says so.

    One thread a process: for models this small more only wait for each other, and long where other work goes on beside.
    """
    return {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **variables}


def run(script: str, *arguments: Any, launch: Path | None = None, env: dict[str, str] | None = None) -> Result:
    """Run a script to its end: by Python, or by accelerate launch with the configuration `launch`."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(launch)] if launch else []
    command = [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]
    # Bytes, since text mode would turn the carriage returns of a progress bar into line ends.
    done = subprocess.run(command, capture_output=True, env=env or environment(), check=False, timeout=600)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def succeed(script: str, *arguments: Any, **options: Any) -> Result:
    """Run a script that is expected to succeed."""
    result = run(script, *arguments, **options)
    assert result.status == 0, result.out + result.err
    return result


def metrics(stage_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage_folder / "metrics.jsonl").read_text().splitlines()]


def losses(stage_folder: Path) -> dict[int, float]:
    """The loss of each step; a step that was logged twice is an error."""
    steps = [line for line in metrics(stage_folder) if "loss" in line]
    assert len({line["step"] for line in steps}) == len(steps)
    return {line["step"]: line["loss"] for line in steps}


def record(stage_folder: Path) -> dict[str, Any]:
    return json.loads((stage_folder / "stage.json").read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All files below a folder with size and time of change, to see that nothing has changed."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size if path.is_file() else 0, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
