"""A kill at any moment costs at most the work since the last checkpoint, and the result is the undisturbed run's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.scripts import ROOT, environment, losses, metrics, record, run, succeed

STEPS = 21  # 10 songs in batches of 4, seven epochs


@pytest.fixture(scope="module")
def slow(embedded, splits) -> list[str]:
    """Flags of a training that takes some seconds, with dropout, and a checkpoint every 4 steps."""
    return [
        "--data_dir", splits, "--model_name_or_path", "embedded", "--num_epochs", 7, "--warmup_steps", 2,
        "--learning_rate", "1e-3", "--checkpointing_steps", 4, "--micro_batch_size", 1,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, slow) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    succeed("train.py", "--stage", 1, 2, "--output_dir", output, *slow)
    return output / "default"


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )


def stop_when(process: subprocess.Popen, reached: Callable[[], bool], number: signal.Signals) -> str:
    """Send the signal to the whole group once `reached`; returns what the process has printed."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)[0]


def between_checkpoints(stage: Path) -> Callable[[], bool]:
    """Whether a step after the first checkpoint, and of no checkpoint, was the last one to be logged."""

    def reached() -> bool:
        if not (stage / "metrics.jsonl").exists() or not (stage / "checkpoints" / "step_000004" / "manifest.json").exists():
            return False
        step = metrics(stage)[-1]["step"]
        return step > 4 and step % 4 != 0

    return reached


def assert_same_stage(one: Path, other: Path) -> None:
    """Equal at zero tolerance: weights, every step's loss, and the loss on held-out songs."""
    assert record(one)["model"]["weights_sha256"] == record(other)["model"]["weights_sha256"]
    assert losses(one) == losses(other)
    val_losses = [[line["val_loss"] for line in metrics(stage) if "val_loss" in line] for stage in (one, other)]
    assert val_losses[0] == val_losses[1]


@pytest.mark.slow
def test_killed_between_checkpoints_and_resumed(undisturbed, slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"
    process = start("--stage", 1, "--output_dir", tmp_path, *slow)
    stop_when(process, between_checkpoints(stage), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (stage / "stage.json").exists()
    resumed = succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow)
    assert "Going on after step" in resumed.out
    assert_same_stage(stage, undisturbed / "stage_1")
    assert record(stage)["starts"] == 2
    assert len(losses(stage)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_so(undisturbed, slow, tmp_path, number):
    stage = tmp_path / "default" / "stage_1"
    process = start("--stage", 1, "--output_dir", tmp_path, *slow, "--checkpointing_steps", 500)
    said = stop_when(process, lambda: stage.exists() and len(metrics_of(stage)) > 3, number)
    assert process.returncode == 75
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said
    assert "Going on after step" in succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow).out
    assert_same_stage(stage, undisturbed / "stage_1")


def metrics_of(stage: Path) -> list[dict]:
    return metrics(stage) if (stage / "metrics.jsonl").exists() else []


@pytest.mark.slow
def test_a_chain_killed_in_its_second_stage_goes_on_there(undisturbed, slow, tmp_path):
    command = ["--stage", 1, 2, "--output_dir", tmp_path, *slow]
    stop_when(start(*command), between_checkpoints(tmp_path / "default" / "stage_2"), signal.SIGKILL)
    first = (tmp_path / "default" / "stage_1" / "stage.json").stat().st_mtime_ns
    resumed = succeed("train.py", *command)
    assert "Stage 1 is finished with these settings, data and parent: kept" in resumed.out
    assert "Going on after step" in resumed.out
    assert (tmp_path / "default" / "stage_1" / "stage.json").stat().st_mtime_ns == first
    assert_same_stage(tmp_path / "default" / "stage_2", undisturbed / "stage_2")
    again = succeed("train.py", *command)
    assert again.out.count("kept") == 2


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_the_way_back_to_the_one_before(undisturbed, slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"

    def two_checkpoints() -> bool:
        return (stage / "checkpoints" / "step_000008").exists()

    stop_when(start("--stage", 1, "--output_dir", tmp_path, *slow), two_checkpoints, signal.SIGKILL)
    newest = max(stage.glob("checkpoints/step_*"))
    os.truncate(newest / "model.safetensors", 1000)
    resumed = succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow)
    assert f"{newest} is passed over" in resumed.out
    assert_same_stage(stage, undisturbed / "stage_1")


@pytest.mark.slow
def test_a_finished_stage_stands_until_its_successor_is_whole(undisturbed, slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"
    succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow, "--num_epochs", 1)
    old = record(stage)

    # Other settings train it again, beside it; a kill there costs the old model nothing.
    again = tmp_path / "default" / ".stage_1.partial"
    stop_when(start("--stage", 1, "--output_dir", tmp_path, *slow), between_checkpoints(again), signal.SIGKILL)
    assert record(stage) == old
    assert (stage / "model" / "model.safetensors").exists()

    assert "Going on after step" in succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow).out
    assert not again.exists()
    assert_same_stage(stage, undisturbed / "stage_1")


@pytest.mark.slow
def test_unfinished_work_of_other_settings_is_neither_mixed_in_nor_lost_by_accident(undisturbed, slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"
    other = [*slow, "--learning_rate", "9e-4"]
    stop_when(start("--stage", 1, "--output_dir", tmp_path, *other), between_checkpoints(stage), signal.SIGKILL)
    refused = run("train.py", "--stage", 1, "--output_dir", tmp_path, *slow)
    assert refused.status == 2
    assert "learning_rate 0.0009 -> 0.001" in refused.err
    assert (stage / "checkpoints" / "step_000004").exists()
    afresh = succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *slow, "--overwrite")
    assert "starting afresh" in afresh.out
    assert_same_stage(stage, undisturbed / "stage_1")


def test_overwriting_a_finished_stage_or_not(fast, tmp_path):
    command = ["--stage", 1, "--output_dir", tmp_path, *fast]
    stage = tmp_path / "default" / "stage_1"
    succeed("train.py", *command)
    first = record(stage)
    assert "kept" in succeed("train.py", *command).out
    assert record(stage) == first

    refused = run("train.py", *command, "--no-overwrite")
    assert refused.status == 2
    assert "stage 1 of run 'default' is finished" in refused.err
    assert record(stage) == first

    time.sleep(1.1)  # records tell seconds
    succeed("train.py", *command, "--overwrite")
    assert record(stage)["finished_at"] != first["finished_at"]
    assert record(stage)["model"] == first["model"]


def test_a_stage_whose_parent_was_trained_again_is_trained_again(fast, tmp_path):
    succeed("train.py", "--stage", 1, 2, "--output_dir", tmp_path, *fast)
    old = record(tmp_path / "default" / "stage_2")
    succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *fast, "--seed", 5)
    succeed("train.py", "--stage", 2, "--output_dir", tmp_path, *fast)
    new = record(tmp_path / "default" / "stage_2")
    assert new["parent"]["weights_sha256"] != old["parent"]["weights_sha256"]
    assert new["parent"]["weights_sha256"] == record(tmp_path / "default" / "stage_1")["model"]["weights_sha256"]


def test_a_dry_run_says_what_would_happen_and_writes_nothing(fast, tmp_path):
    result = succeed("train.py", "--stage", 1, 2, "--output_dir", tmp_path / "runs", *fast, "--dry_run")
    for word in ("Songs", "Tokens", "Steps", "Starts from", "disk needed", "stage 1", "train"):
        assert word in result.out
    assert not (tmp_path / "runs").exists()


def test_a_warm_up_longer_than_the_stage_is_warned_of(fast, tmp_path):
    result = succeed("train.py", "--stage", 1, "--output_dir", tmp_path, *fast, "--warmup_steps", 100, "--dry_run")
    assert "never reaches its height" in result.out


def test_a_chain_that_does_not_hold_together_is_refused(fast, songs_file, splits, tmp_path):
    flags = ["--output_dir", tmp_path / "runs", *fast]
    succeed("train.py", "--stage", 1, 2, *flags)
    other = tmp_path / "other"
    succeed("split_data.py", "--input", songs_file, "--output_dir", other, "--seed", 9)
    refused = run("train.py", "--stage", 3, *flags, "--data_dir", other)
    assert refused.status == 2
    assert "stage 1 of run 'default' was trained on another split" in refused.err

    succeed("train.py", "--stage", 1, *flags, "--seed", 5)
    evaluation = ["evaluate.py", "--output_dir", tmp_path / "runs", "--data_dir", splits, "--encoder", "embedded"]
    refused = run(*evaluation)
    assert refused.status == 2
    assert "stage 2 started from another stage 1 than stands there now" in refused.err
    assert run("train.py", "--stage", 3, *flags).status == 2
    assert run("train.py", "--stage", 1, 3, *flags).status == 2


def test_a_run_that_diverges_replaces_nothing(fast, tmp_path):
    command = ["--stage", 1, "--output_dir", tmp_path, *fast]
    succeed("train.py", *command)
    before = record(tmp_path / "default" / "stage_1")
    result = run("train.py", *command, "--learning_rate", "1e30")
    assert result.status == 2
    assert "diverged" in result.err
    assert record(tmp_path / "default" / "stage_1") == before


def test_two_trainers_of_one_run_are_kept_apart(slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"
    process = start("--stage", 1, "--output_dir", tmp_path, *slow)
    while not metrics_of(stage):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it is still at work when the other one comes
    refused = run("train.py", "--stage", 1, "--output_dir", tmp_path, *slow)
    assert refused.status == 2
    assert "another train.py is at work" in refused.err
    stop_when(process, lambda: True, signal.SIGKILL)


def test_no_valid_checkpoint_is_a_matter_for_the_user(slow, tmp_path):
    stage = tmp_path / "default" / "stage_1"
    process = start("--stage", 1, "--output_dir", tmp_path, *slow)
    stop_when(process, lambda: (stage / "checkpoints" / "step_000004").exists(), signal.SIGKILL)
    for checkpoint in stage.glob("checkpoints/step_*"):
        os.truncate(checkpoint / "model.safetensors", 10)
    refused = run("train.py", "--stage", 1, "--output_dir", tmp_path, *slow)
    assert refused.status == 2
    assert "no checkpoint is whole" in refused.err
    assert (stage / "checkpoints" / "step_000004").exists()
