"""Files and folders that are whole or not there: written beside their place, flushed, then renamed.

A folder can't be renamed over another one. So `replace_folder` moves the old one aside, moves the new one in, and only
then removes the old one; whoever opens the folder first calls `settle_folder`, which ends a replacement that a kill cut
short between the two renames.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def to_json(data: Any) -> str:
    """The JSON that this project writes: indented, accents as they are, a line end at the end."""
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def umask() -> int:
    """What the user's files are not to be permitted; the operating system tells it only by setting it."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def flush(path: Path) -> None:
    """Have the operating system put a file or a folder's entries on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """`flush` for all that lies in `folder`, and for itself."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


def partial_of(folder: Path) -> Path:
    """Where a folder's successor grows."""
    return folder.with_name(f".{folder.name}.partial")


def _previous_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to write to, which takes the place of `folder` when the block ends without an error.

    After an error it is removed, and so are the folders above it that were made for it: nothing has changed.
    """
    settle_folder(folder)
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    made = [parent for parent in (partial, *partial.parents) if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        flush_tree(partial)
        replace_folder(partial, folder)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a full disk's error doesn't say where
            error.filename = str(folder)
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made[1:]:
            try:
                parent.rmdir()
            except OSError:  # something else lies in it by now, or it was never made
                break
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Put the whole folder `new` in the place of `folder`, whether or not there is one."""
    previous = _previous_of(folder)
    if folder.exists():
        folder.rename(previous)
    new.rename(folder)
    flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def settle_folder(folder: Path) -> None:
    """End a `replace_folder` that a kill cut short: bring the old folder back, or finish its removal."""
    previous = _previous_of(folder)
    if previous.exists():
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(folder)
