"""Know which files are mapped, and say which of them another process has cut. It maps none, and loads nothing heavy.

Reading what is gone raises SIGBUS. The kernels' library turns that into zeros and CUT_SIGNAL (kernels/cpu/guard.cpp),
where somebody handles that.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from core.system.errors import FileError

CUT_SIGNAL = getattr(signal, "SIGURG", None)  # which the guard tells the main thread; else nobody uses it
_MAPPED: dict[str, int] = {}  # path of each file that was ever mapped, and the bytes that it had


def note_mapped(path: Path, size_bytes: int) -> None:
    """Remember a file that is mapped."""
    _MAPPED[os.path.abspath(path)] = size_bytes


def cut_files() -> list[str]:
    """Name the files that are shorter than when they were mapped, or gone."""
    found = []
    for path, size in _MAPPED.items():
        try:
            is_cut = os.stat(path).st_size < size
        except OSError:
            is_cut = True
        if is_cut:
            found.append(path)
    return found


def cut_error() -> FileError:
    """What to say after SIGBUS."""
    named = ", ".join(cut_files()) or "a file that was mapped"
    return FileError(f"{named} became shorter, or its disk failed, while it was read: another program writes it. Wait "
                     "until it is whole, or read it at once with --no-mmap.")
