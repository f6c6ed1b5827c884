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

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def settle(self, number: int) -> None:
        """Bring to an end what a kill cut short when a stage's folder was being replaced."""
        settle_folder(self.stage(number).path)
        again = StageFolder(partial_of(self.stage(number).path))
        if again.record.exists():  # whole, but not yet in its place
            replace_folder(again.path, self.stage(number).path)

    def publish(self, number: int, attempt: StageFolder) -> None:
        """Put a whole attempt in its stage's place."""
        if attempt.path != self.stage(number).path:
            replace_folder(attempt.path, self.stage(number).path)

    def finished_stages(self) -> list[int]:
        """The numbers of the finished stages, in ascending order."""
        numbers = [path.name.removeprefix("stage_") for path in self.path.glob("stage_*")]
        return sorted(int(number) for number in numbers if number.isdigit() and self.stage(int(number)).record.exists())
