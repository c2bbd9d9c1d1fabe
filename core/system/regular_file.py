"""Read a whole file that may be a stranger's: a regular one, no larger than a limit. It knows no format.

A pipe, a socket or a device is refused before a byte is read: reading one may never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.system.errors import FileError, os_reason

PIECE_BYTES = 1 << 20


def read_file(path: Path, most_bytes: int, repair: str) -> bytes:
    """Return a file's bytes; FileError says what stands in the way and the repair. It stops at the limit."""
    with open_file(path, most_bytes, repair) as file:
        pieces, room = list[bytes](), most_bytes
        while piece := file.read(min(PIECE_BYTES, room + 1)):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise _too_large(path, most_bytes, repair)
        return b"".join(pieces)


def read_text(path: Path, most_bytes: int, repair: str) -> str:
    """Return a UTF-8 text, line ends as they are but for CR LF; FileError."""
    data = read_file(path, most_bytes, repair)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}. {repair}") from None


@contextmanager
def open_file(path: Path, most_bytes: int, repair: str) -> Iterator[BinaryIO]:
    """Yield a regular file that is no larger than most_bytes, open to read; FileError, also for what fails inside."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f"{path} is {kind_of(found.st_mode)}; a regular file was needed. {repair}")
            if found.st_size > most_bytes:
                raise _too_large(path, most_bytes, repair, found.st_size)
            yield file
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise FileError(f"{path} could not be read: {os_reason(error)}. {repair}") from error


def refuse_irregular(path: Path, repair: str) -> None:
    """Refuse what a library would open by itself and that is no regular file; FileError."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise FileError(f"{path} could not be read: {os_reason(error)}. {repair}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is {kind_of(mode)}; a regular file was needed. {repair}")


def kind_of(mode: int) -> str:
    """Name what is no regular file."""
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "no regular file")


def _too_large(path: Path, most_bytes: int, repair: str, found: int | None = None) -> FileError:
    size = "more" if found is None else f"{found} bytes"
    return FileError(f"{path} has {size}; at most {most_bytes} may be read of such a file. {repair}")
