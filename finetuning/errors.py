"""Mistakes that a user can mend, told in one line each: no traceback, exit status 2."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # sysexits.h's EX_TEMPFAIL: nothing is wrong, run the same command again to go on
EXIT_KILLED_BY_USER = 130  # what a shell reports after Ctrl-C


class UserError(Exception):
    """Something the user can mend. Each argument is one line: the input, what is wrong, what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    @staticmethod
    def of_all(lines: Iterable[str]) -> None:
        """Raise one UserError with all of `lines`, each once, or nothing where there are none."""
        if collected := tuple(dict.fromkeys(lines)):
            raise UserError(*collected)


def operating_system_error(error: OSError) -> UserError:
    """An OSError in the user's words."""
    where = error.filename or "a file"
    advice = {
        errno.ENOSPC: "the disk is full; free some space, or name another folder",
        errno.EDQUOT: "your disk quota is used up; free some space, or name another folder",
        errno.EROFS: "the file system is read-only; name another folder",
        errno.EACCES: "permission denied; change its permissions, or name another path",
        errno.EPERM: "the operating system doesn't permit it; name another path",
        errno.ENOENT: "there is no such file or folder; check the path",
        errno.EISDIR: "it is a folder, not a file",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EEXIST: "it exists already and is not a folder",
    }.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
    return UserError(f"{where}: {advice}")


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def require_writable(folder: Path, flag: str) -> None:
    """Check that `folder`, or the nearest folder above it that exists, can be written to; change nothing.

    Raises:
        UserError: it can't.
    """
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        raise UserError(f"{flag} {folder}: {nearest} is a file, not a folder; name another folder")
    read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY  # root passes os.access on read-only file systems of some kinds
    if read_only or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {nearest} can't be written to; name another folder")


def leave_with(mistakes: UserError) -> NoReturn:
    """Print the mistakes, a line each, by one process of each machine, and leave with the status for bad input."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in mistakes.lines:
            print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main function and leave with its status; a UserError or OSError ends in one line a mistake."""
    try:
        status = main() or 0
    except UserError as mistakes:
        leave_with(mistakes)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or Python complains once more when it flushes
        status = EXIT_BAD_INPUT
    except OSError as error:
        leave_with(operating_system_error(error))
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        status = EXIT_KILLED_BY_USER
    sys.exit(status)
