"""Make a file that is whole or absent: written under another name, then renamed. What goes into it is the caller's.

A process that dies leaves the old file or none, and its part, which the next writer there sweeps (rests.py). The bytes
and the name are forced to the disk (disk.py), so a power cut does the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.system.disk import sync
from core.system.errors import OutputError, UsageError, os_reason
from core.system.rests import PART, own_name, sweep


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name to write under; it replaces path when the block ends well, and is removed when not. OSError."""
    sweep(path.parent)
    part = _new_part(path)  # whether it can be written shows before the work
    try:
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, force: bool = False) -> Iterator[Path]:
    """An atomic_file that a user named.

    Errors: UsageError where the file exists and force is not given; OutputError where it cannot be written.
    """
    try:
        if is_special(path):
            raise UsageError(f"{path} is a device or a pipe; the name of a file was needed.")
        _refuse_folder(path)
        refuse_existing(path, force)
        with atomic_file(path) as part:
            yield part
            refuse_existing(path, force)  # somebody may have been faster
    except OSError as error:
        raise _unwritten(path, error) from error


def refuse_foreign(path: Path, force: bool, start: bytes, option: str, what: str) -> None:
    """Refuse, before the work, a name that cannot be written and a file that does not begin as ours do.

    Errors: UsageError for a folder and another's file, OutputError.
    """
    try:
        if is_special(path):
            raise UsageError(f"{option} {path} is no regular file; the name of a file was needed.")
        _refuse_folder(path)
        _new_part(Path(os.path.realpath(path))).unlink()
        if force or not path.exists():
            return
        with path.open("rb") as file:
            found = file.read(len(start))
    except OSError as error:
        raise _unwritten(path, error) from error
    if found not in (b"", start):
        raise UsageError(f"{option} {path} exists and is no {what} of apr-tui, so it is left as it is. "
                         "Give another name, or --force to replace it.")


def is_special(path: Path) -> bool:
    """Whether it is there and is neither a file nor a folder: a pipe, a socket, a device."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _new_part(path: Path) -> Path:
    """Make the empty file to write under; a link or a file that somebody put there is refused. OSError."""
    part = own_name(path, PART)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    return part


def _refuse_folder(path: Path) -> None:
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; the name of a file was needed.")


def _unwritten(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} could not be written: {os_reason(error)}. Nothing was left behind. "
                       "Give a folder that exists, is writable and has room.")


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse a name that is taken, before the work; UsageError, and OutputError where that cannot be seen."""
    try:
        is_taken = path.exists()
    except OSError as error:
        raise OutputError(f"{path} could not be written: {os_reason(error)}.") from error
    if is_taken and not force:
        raise UsageError(f"{path} exists already. Give another name, or --force to replace it.")
