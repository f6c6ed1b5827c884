"""TensorBoard and W&B get every step once, and neither can cost the training."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.scripts import ROOT, environment, losses, succeed
from tests.end_to_end.test_resumption import between_checkpoints, start, stop_when


def wandb_runs(stage: Path) -> list[str]:
    """The ids of the offline runs that lie in a stage's folder."""
    return sorted(path.name.rsplit("-", 1)[1] for path in stage.glob("wandb/offline-run-*"))


def test_tensorboard_and_wandb_offline(fast, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["--stage", 1, "--output_dir", tmp_path, *fast, "--report_to", "tensorboard", "wandb"]
    succeed("train.py", *command)
    stage = tmp_path / "default" / "stage_1"
    events = EventAccumulator(str(stage / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx(losses(stage), rel=1e-6)
    assert wandb_runs(stage) == [(stage / "wandb_run_id.txt").read_text().strip()]


def test_a_resumed_stage_goes_on_in_the_same_wandb_run(fast, tmp_path):
    slow = [*fast, "--model_name_or_path", "embedded", "--num_epochs", 5, "--checkpointing_steps", 4]
    command = ["--stage", 1, "--output_dir", tmp_path, *slow, "--report_to", "wandb"]
    stage = tmp_path / "default" / "stage_1"
    stop_when(start(*command), between_checkpoints(stage), signal.SIGTERM)
    succeed("train.py", *command)
    assert len(wandb_runs(stage)) == 2
    assert len(set(wandb_runs(stage))) == 1


@pytest.mark.parametrize("trouble", ["no key", "no network"])
def test_wandb_in_trouble_costs_one_line(fast, tmp_path, trouble):
    variables = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    if trouble == "no network":
        variables["WANDB_API_KEY"] = "0123456789abcdef" * 2 + "01234567"
    started = time.monotonic()
    result = succeed(
        "train.py", "--stage", 1, "--output_dir", tmp_path, *fast, "--report_to", "wandb", env=environment(**variables)
    )
    assert time.monotonic() - started < 90
    warnings = [line for line in result.out.splitlines() if "goes on without wandb" in line]
    assert len(warnings) == 1
    assert "Traceback" not in result.out + result.err
    assert "Stage 1 is finished" in result.out


def test_plain_lines_where_the_output_is_no_terminal(fast, tmp_path):
    result = succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *fast, "--logging_steps", 4)
    assert "\r" not in result.out + result.err
    assert "\x1b" not in result.out + result.err
    for step in (4, 8, 9):
        assert f"step {step} of 9: loss" in result.out


def test_a_bar_on_a_terminal(fast, tmp_path):
    if shutil.which("script") is None:
        pytest.skip("needs the command script (util-linux), which makes a terminal")
    command = shlex.join(map(str, [sys.executable, ROOT / "train.py", "--stage", 1, "--output_dir", tmp_path, *fast]))
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        env=environment(),
        check=True,
        stdin=subprocess.DEVNULL,
    )
    bar = done.stdout.decode()
    assert "\r" in bar
    assert "Stage 1:" in bar
    assert "tokens/s" in bar
