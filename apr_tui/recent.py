"""Remember the files that were opened last, newest first, in the user's state folder. It opens none of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from core.system.atomic_file import atomic_file
from core.system.errors import FileError
from core.system.limits import CACHE_BYTES
from core.system.paths import state_folder
from core.system.regular_file import read_text

MOST = 12
NAME = "recent"


def recent() -> list[str]:
    """The files and folders that were opened last and are still there."""
    try:
        lines = read_text(state_folder() / NAME, CACHE_BYTES, "").split("\n")
    except FileError:
        return []
    return [line for line in lines[:MOST] if line and line.isprintable() and os.path.exists(line)]


def remember(path: Path) -> None:
    """Put a path first; a folder that cannot be written to remembers nothing."""
    text = os.path.abspath(path)
    with contextlib.suppress(OSError, UnicodeEncodeError):
        if text.isprintable():
            lines = [text, *(line for line in recent() if line != text)][:MOST]
            state_folder().mkdir(parents=True, exist_ok=True)
            with atomic_file(state_folder() / NAME) as part:
                part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
