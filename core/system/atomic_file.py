"""Make a file that is whole or absent: written under another name, then renamed. What goes into it is the caller's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.system.errors import OutputError, UsageError


@contextmanager
def new_file(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield the name to write under; rename it when the block ends well, remove it when it does not.

    Errors: UsageError where the file exists and force is not given; OutputError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    refuse_existing(path, force)
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; the name of a file was needed.")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is a device or a pipe; the name of a file was needed.")
        part.open("wb").close()  # whether it can be written shows before the work
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield part
        refuse_existing(path, force)  # somebody may have been faster
        part.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse a name that is taken, before the work; UsageError, and OutputError where that cannot be seen."""
    try:
        is_taken = path.exists()
    except OSError as error:
        raise _not_written(path, error) from error
    if is_taken and not force:
        raise UsageError(f"{path} exists already. Give another name, or --force to replace it.")


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} could not be written: {error.strerror or error}. Nothing was left behind. "
        "Give a folder that exists, is writable and has room.",
    )
