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
    part = own_name(path, PART)
    # whether it can be written shows before the work; a link or a file that somebody put there is refused
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
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
        if path.is_dir():
            raise UsageError(f"{path} is a folder; the name of a file was needed.")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is a device or a pipe; the name of a file was needed.")
        refuse_existing(path, force)
        with atomic_file(path) as part:
            yield part
            refuse_existing(path, force)  # somebody may have been faster
    except OSError as error:
        raise OutputError(f"{path} could not be written: {os_reason(error)}. Nothing was left behind. "
                          "Give a folder that exists, is writable and has room.") from error


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse a name that is taken, before the work; UsageError, and OutputError where that cannot be seen."""
    try:
        is_taken = path.exists()
    except OSError as error:
        raise OutputError(f"{path} could not be written: {os_reason(error)}.") from error
    if is_taken and not force:
        raise UsageError(f"{path} exists already. Give another name, or --force to replace it.")
