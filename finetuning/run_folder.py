"""Where everything of a run lies, and the record that says that a stage is finished.

runs/<run_name>/
    stage_1/
        stage.json          the record; it is written last, so the stage is finished where it stands
        model/              the finished model, as save_pretrained writes it
        metrics.jsonl       a line a step
        checkpoints/        step_000500/, ...
        tensorboard/, wandb/
    stage_2/ ...
    .stage_2.partial/       a finished stage that is being trained again; it takes stage_2's place when it is whole
    evaluation/
"""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetuning.errors import UserError
from finetuning.files import partial_of, replace_folder, settle_folder, to_json, write_whole


@dataclass(frozen=True)
class StageFolder:
    """The files of one stage."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "stage.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def wandb_run(self) -> Path:
        """The id of the stage's run at W&B, so that a resumed stage goes on in it."""
        return self.path / "wandb_run_id.txt"

    def read_record(self) -> dict[str, Any] | None:
        """The record of the finished stage, or None where it isn't finished.

        Raises:
            UserError: the record is broken.
        """
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{self.record}: broken; remove it and train the stage again") from None

    def write_record(self, record: dict[str, Any]) -> None:
        """Declare the stage finished."""
        write_whole(self.record, to_json(record))


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    output_dir: Path
    run_name: str

    @property
    def path(self) -> Path:
        return self.output_dir / self.run_name

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def stage(self, number: int) -> StageFolder:
        """Stage `number`: the finished one where there is one, even while it is trained again."""
        return StageFolder(self.path / f"stage_{number}")

    def attempt(self, number: int) -> StageFolder:
        """Where to train stage `number`: in its folder, or beside it where that holds a finished stage."""
        stage = self.stage(number)
        return StageFolder(partial_of(stage.path)) if stage.record.exists() else stage

    def settle(self) -> None:
        """Bring to an end what a kill cut short when a stage's folder was being replaced."""
        for found in self.path.glob(".stage_*"):
            stage = self.path / found.name.removeprefix(".").partition(".")[0]
            settle_folder(stage)
            again = StageFolder(partial_of(stage))
            if again.record.exists():  # whole, but not yet in its place
                replace_folder(again.path, stage)

    def lock(self) -> IO[str]:
        """Make sure that no other process trains in this run, until the file returned is closed or the process ends.

        Raises:
            UserError: another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / ".lock", "w")  # noqa: SIM115 - it stays open as long as the process trains
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--run_name {self.run_name}: another train.py is at work in {self.path}; wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks: nothing to be sure of
            pass
        return file

    def publish(self, number: int, attempt: StageFolder) -> None:
        """Put a whole attempt in its stage's place."""
        if attempt.path != self.stage(number).path:
            replace_folder(attempt.path, self.stage(number).path)

    def chain(self, last: int) -> dict[int, dict[str, Any]]:
        """The records of stages 1 to `last`, each of which started from the one before it as that one stands now.

        Raises:
            UserError: a stage isn't finished, or started from another model than stands before it.
        """
        name = "" if self.run_name == "default" else f" --run_name {self.run_name}"
        command = f"accelerate launch train.py{name} --stage"
        found = {number: self.stage(number).read_record() for number in range(1, last + 1)}
        records = {number: record for number, record in found.items() if record is not None}
        if missing := " ".join(str(number) for number in found if number not in records):
            raise UserError(f"run '{self.run_name}': stage {missing} isn't finished; train with: {command} {missing}")
        for number in range(2, last + 1):
            if records[number]["parent"]["weights_sha256"] != records[number - 1]["model"]["weights_sha256"]:
                raise UserError(
                    f"run '{self.run_name}': stage {number} started from another stage {number - 1} than stands there now; "
                    f"train it again with: {command} {number}"
                )
        return records

    def finished_stages(self) -> list[int]:
        """The numbers of the finished stages, in ascending order."""
        numbers = [path.name.removeprefix("stage_") for path in self.path.glob("stage_*")]
        return sorted(int(number) for number in numbers if number.isdigit() and self.stage(int(number)).record.exists())
