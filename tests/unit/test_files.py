"""What stands is replaced only by something whole, whenever the writer dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.files import partial_of, replace_folder, settle_folder, sha256_of, whole_folder, write_whole


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "stage.json"
    write_whole(path, "old ñ")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert content(tmp_path) == {"stage.json": "old ñ"}


def test_a_folder_takes_the_old_ones_place_when_whole(tmp_path):
    folder = tmp_path / "out" / "splits"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("1")
        assert not folder.exists()
    with whole_folder(folder) as partial:
        (partial / "b").write_text("2")
        assert content(folder) == {"a": "1"}
    assert content(folder) == {"b": "2"}
    assert list(folder.parent.iterdir()) == [folder]


def test_after_an_error_nothing_has_changed(tmp_path):
    folder = tmp_path / "made" / "for" / "it"
    with pytest.raises(OSError, match="nope"), whole_folder(folder) as partial:
        (partial / "a").write_text("1")
        raise OSError("nope")
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_old_folder_and_names_where(tmp_path):
    folder = tmp_path / "splits"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(OSError) as error, whole_folder(folder) as partial:
        (partial / "a").write_text("2")
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(folder)
    assert content(folder) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [folder]


KILLED_AT = """
import os, sys
from pathlib import Path
from finetuning import files
moment, folder = sys.argv[1], Path(sys.argv[2])
renames = 0
rename = Path.rename
def counted(self, target):
    global renames
    if moment == f"before rename {renames}":
        os._exit(9)
    renames += 1
    return rename(self, target)
Path.rename = counted
files.shutil.rmtree = lambda *a, **k: os._exit(9) if renames == 2 and moment == "before removal" else None
with files.whole_folder(folder) as partial:
    (partial / "a").write_text("new")
    if moment == "while writing":
        os._exit(9)
"""


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("while writing", "old"), ("before rename 0", "old"), ("before rename 1", "old"), ("before removal", "new")],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, moment, expected):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, moment, str(folder)], check=False)
    assert killed.returncode == 9
    settle_folder(folder)
    assert content(folder) == {"a": expected}
    with whole_folder(folder) as partial:  # and the next writer isn't disturbed by what the kill left
        (partial / "a").write_text("next")
    assert content(folder) == {"a": "next"}
    assert list(tmp_path.iterdir()) == [folder]


def test_settling_what_is_settled_changes_nothing(tmp_path):
    folder = tmp_path / "model"
    settle_folder(folder)
    assert list(tmp_path.iterdir()) == []
    new = partial_of(folder)
    new.mkdir()
    replace_folder(new, folder)
    settle_folder(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
