"""A checkpoint is whole or passed over; what was there before a failure is still there."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from finetuning.checkpoints import TrainingState, newest_valid_checkpoint, save_checkpoint, unfinished_work, verify
from finetuning.errors import UserError


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    accelerator.prepare(model, optimizer)
    return accelerator


def save(accelerator: Accelerator, folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(accelerator, folder, TrainingState(completed_steps=step, recipe={"seed": 0}), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_nothing_else_is_left(accelerator, tmp_path):
    save(accelerator, tmp_path, 5, 10, 15, 20)
    assert names(tmp_path) == ["step_000015", "step_000020"]
    found = newest_valid_checkpoint(accelerator, tmp_path, pytest.fail)
    assert found == (tmp_path / "step_000020", TrainingState(completed_steps=20, recipe={"seed": 0}))


def test_none_is_none(accelerator, tmp_path):
    assert newest_valid_checkpoint(accelerator, tmp_path / "missing", pytest.fail) is None
    assert unfinished_work(tmp_path) is None


def damage(checkpoint: Path, how: str) -> None:
    file = checkpoint / "optimizer.bin"
    if how == "flipped bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif how == "missing file":
        file.unlink()
    elif how == "missing manifest":
        (checkpoint / "manifest.json").unlink()
    elif how == "truncated manifest":
        os.truncate(checkpoint / "manifest.json", 30)
    elif how == "manifest of another kind":
        (checkpoint / "manifest.json").write_text(json.dumps({"files": [], "state": 3}))


DAMAGES = ["flipped bit", "truncated", "missing file", "missing manifest", "truncated manifest", "manifest of another kind"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(accelerator, tmp_path, how):
    save(accelerator, tmp_path, 5, 10)
    damage(tmp_path / "step_000010", how)
    warnings: list[str] = []
    found = newest_valid_checkpoint(accelerator, tmp_path, warnings.append)
    assert found is not None
    assert found[0].name == "step_000005"
    assert len(warnings) == 1
    assert "step_000010 is passed over" in warnings[0]


def test_the_damaged_one_is_replaced_when_its_step_comes_again(accelerator, tmp_path):
    save(accelerator, tmp_path, 5, 10)
    damage(tmp_path / "step_000010", "truncated")
    save(accelerator, tmp_path, 10)
    assert verify(tmp_path / "step_000010")[1] is not None


def test_leftovers_of_a_kill_are_not_taken_for_checkpoints(accelerator, tmp_path):
    save(accelerator, tmp_path, 5)
    shutil.copytree(tmp_path / "step_000005", tmp_path / ".step_000010.partial")
    shutil.copytree(tmp_path / "step_000005", tmp_path / ".step_000001.removed")
    found = newest_valid_checkpoint(accelerator, tmp_path, pytest.fail)
    assert found is not None
    assert found[0].name == "step_000005"
    save(accelerator, tmp_path, 10)
    assert "step_000010" in names(tmp_path)
    assert ".step_000010.partial" not in names(tmp_path)


def test_a_disk_that_fills_costs_only_the_new_checkpoint(accelerator, disk_of_256_kib):
    folder = disk_of_256_kib / "checkpoints"
    save(accelerator, folder, 5)
    (disk_of_256_kib / "other").write_bytes(bytes(shutil.disk_usage(disk_of_256_kib).free - 4096))
    with pytest.raises(UserError, match="disk is full"):
        save(accelerator, folder, 10)
    assert names(folder) == ["step_000005"]
    assert verify(folder / "step_000005")[1] is not None
    (disk_of_256_kib / "other").unlink()
    save(accelerator, folder, 10)
    assert names(folder) == ["step_000005", "step_000010"]
