"""Say where this program keeps what it makes for a user: caches and logs. It makes no folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of what can be made again: kernels, demonstration, token shards, rungs of a ladder."""
    return _folder("XDG_CACHE_HOME", "~/.cache")


def state_folder() -> Path:
    """Return the folder of logs."""
    return _folder("XDG_STATE_HOME", "~/.local/state")


def _folder(variable: str, usual: str) -> Path:
    """Follow the XDG base directories: a relative path in the variable does not count."""
    said = os.environ.get(variable, "")
    return Path(said if os.path.isabs(said) else os.path.expanduser(usual)) / "apr-tui"
