"""A stage is finished where its record stands, and a new attempt never harms the finished one."""

import pytest

from finetuning.errors import UserError
from finetuning.run_folder import RunFolder, StageFolder


def finish(folder: StageFolder, name: str) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_record({"name": name})


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs", "canción")


def test_only_a_record_makes_a_stage_finished(run):
    run.stage(2).model.mkdir(parents=True)
    assert run.finished_stages() == []
    assert run.stage(2).read_record() is None
    finish(run.stage(2), "a")
    finish(run.stage(10), "b")
    assert run.finished_stages() == [2, 10]


def test_an_attempt_lies_in_the_stages_folder_until_there_is_a_finished_one(run):
    assert run.attempt(1).path == run.stage(1).path
    finish(run.stage(1), "old")
    assert run.attempt(1).path != run.stage(1).path
    assert run.attempt(1).path.parent == run.stage(1).path.parent


def test_publishing_replaces_the_old_stage(run):
    finish(run.stage(1), "old")
    attempt = run.attempt(1)
    finish(attempt, "new")
    run.publish(1, attempt)
    assert run.stage(1).read_record() == {"name": "new"}
    assert not attempt.path.exists()


def test_a_kill_between_record_and_publication_is_mended(run):
    finish(run.stage(1), "old")
    finish(run.attempt(1), "new")
    run.settle()
    assert run.stage(1).read_record() == {"name": "new"}


def test_an_unfinished_attempt_stays_where_it_is(run):
    finish(run.stage(1), "old")
    attempt = run.attempt(1)
    attempt.checkpoints.mkdir(parents=True)
    run.settle()
    assert run.stage(1).read_record() == {"name": "old"}
    assert attempt.checkpoints.is_dir()


def test_a_broken_record_is_one_line(run):
    run.stage(1).path.mkdir(parents=True)
    run.stage(1).record.write_text('{"stage": 1')
    with pytest.raises(UserError, match=r"stage\.json: broken"):
        run.stage(1).read_record()
