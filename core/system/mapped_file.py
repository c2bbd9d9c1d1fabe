"""Map a file into memory, read-only, and name what stands in the way. It knows no format."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from core.system.arrays import Bytes
from core.system.errors import FileError, os_reason


def map_file(path: Path) -> Bytes:
    """Return the file's bytes, mapped and not read; FileError where there is no such file, or nothing in it."""
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder; a model file (.gguf or .apr) was needed. Name the file inside it.")
        if path.exists() and not path.is_file():
            raise FileError(f"{path} is not a regular file, so it cannot be mapped. Copy it to a file first.")
        if path.stat().st_size == 0:
            raise FileError(f"{path} is empty (0 bytes); a model file was needed. Copy or download it again.")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Give the path of a .gguf or .apr file.") from None
    except (OSError, ValueError) as error:
        why = os_reason(error)
        raise FileError(f"{path} could not be opened: {why}. Check the path and its permissions.") from error


def drop_pages(data: Bytes) -> None:
    """Take the whole pages of mapped bytes out of this process; the system's file cache keeps them. Else do nothing."""
    owner: object = data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return  # never on other memory: there the bytes themselves would go
    begin = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + data.size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)


def quote_name(name: str) -> str:
    """Write a name that came from a file so that it is safe on a terminal: quoted, escaped, at most 80 characters."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
