"""Map a file into memory, read-only, and name what stands in the way. It knows no format, and loads nothing heavy.

Another process may cut a file while it is mapped. Reading what is gone raises SIGBUS, which the kernels' library turns
into zeros and CUT_SIGNAL (kernels/cpu/guard.cpp), where somebody handles that; cut_error then says which file it was.
"""

from __future__ import annotations

import mmap
import os
import signal
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from core.system.errors import FileError, os_reason
from core.system.regular_file import PIECE_BYTES, kind_of

if TYPE_CHECKING:
    from core.system.arrays import Bytes

CUT_SIGNAL = getattr(signal, "SIGURG", None)  # which the guard tells the main thread; else nobody uses it
NO_MMAP = "APR_TUI_NO_MMAP"  # of the environment, so that child processes do alike; --no-mmap sets it
# each map that is in use: its path, and the bytes that the file had
_MAPPED: weakref.WeakKeyDictionary[mmap.mmap, tuple[str, int]] = weakref.WeakKeyDictionary()


def map_file(path: Path) -> Bytes:
    """Return the file's bytes, mapped and not read; FileError where there is no such file, or nothing in it."""
    import numpy as np

    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f"{path} is {kind_of(found.st_mode)}, not a regular file, so it cannot be mapped. "
                                "Copy it to a file first.")
            if found.st_size == 0:
                raise FileError(f"{path} is empty (0 bytes); a model file was needed. Copy or download it again.")
            if os.environ.get(NO_MMAP):
                return _read_whole(path, file.fileno(), found.st_size)
            mapped = mmap.mmap(file.fileno(), found.st_size, access=mmap.ACCESS_READ)
            _MAPPED[mapped] = os.path.abspath(path), found.st_size
            return np.frombuffer(mapped, np.uint8)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Give the path of a .gguf or .apr file.") from None
    except IsADirectoryError:
        raise FileError(
            f"{path} is a folder; a model file (.gguf or .apr) was needed. Name the file inside it.") from None
    except (OSError, ValueError) as error:
        why = os_reason(error)
        raise FileError(f"{path} could not be opened: {why}. Check the path and its permissions.") from error


def cut_files() -> list[str]:
    """Name the files that are shorter than when they were mapped; one that was replaced or removed is still there."""
    return [path for mapped, (path, size) in list(_MAPPED.items()) if mapped.size() < size]


def refuse_cut() -> None:
    """Hold every file in use to its size; FileError. Behind the end of a cut one its last page reads as zeros."""
    if cut_files():
        raise cut_error()


def cut_error() -> FileError:
    """What to say of cut files, also after SIGBUS."""
    named = ", ".join(cut_files()) or "a file that was mapped"
    return FileError(f"{named} became shorter, or its disk failed, while it was read: another program writes it. Wait "
                     "until it is whole; a model can be read at once with --no-mmap.")


def _read_whole(path: Path, number: int, size: int) -> Bytes:
    """Read a file into memory: what others do to it later changes nothing. In pieces, so that a run can be ended."""
    import numpy as np

    data, at = np.empty(size, np.uint8), 0
    while at < size:
        taken = os.preadv(number, [data[at:at + 16 * PIECE_BYTES].data], at)
        if not taken:
            raise FileError(f"{path} became shorter while it was read. Wait until it is whole.")
        at += taken
    return data


def drop_pages(data: Bytes) -> None:
    """Take the whole pages of mapped bytes out of this process; the system's file cache keeps them. Else do nothing."""
    import numpy as np

    owner: object = data
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return  # never on other memory: there the bytes themselves would go
    begin = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + data.size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)


def quote_name(name: str) -> str:
    """Write a name that came from a file so that it is safe on a terminal: quoted, escaped, at most 80 characters."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
