"""The record of a kind of file that is fuzzed, and how a plain one is made. The lists of them: readers.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Read = Callable[[Path], object]
Mend = Callable[[bytes], bytes]
Make = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Reader:
    """One kind. make: write a good file below a folder and return its path, which is what is mutated. read: of that
    path. mend: make a mutant's checksum right, so that what stands behind it is read too. each_run: how many mutants
    the default tests read.
    """

    make: Make
    read: Read
    mend: Mend = bytes
    each_run: int = 2000


def written(name: str, text: str | bytes) -> Make:
    """Make a file of one content."""
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


