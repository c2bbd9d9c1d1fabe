"""Say where this program keeps what it makes for a user: caches and logs. It makes no folder but a last resort."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_dir, user_state_dir

APP = "apr-tui"


def cache_folder() -> Path:
    """Return the folder of what can be made again: kernels, demonstration, token shards, rungs of a ladder."""
    return _folder("XDG_CACHE_HOME", user_cache_dir)


def state_folder() -> Path:
    """Return the folder of logs."""
    return _folder("XDG_STATE_HOME", user_state_dir)


def _folder(variable: str, usual: Callable[[str], str]) -> Path:
    """Follow the XDG base directories: a relative path in the variable does not count."""
    said = os.environ.get(variable, "")
    try:
        found = os.path.join(said, APP) if os.path.isabs(said) else usual(APP)
    except RuntimeError:  # platformdirs knows no home
        found = ""
    return Path(found) if os.path.isabs(found) else _last_resort()


@functools.cache
def _last_resort() -> Path:
    """A folder of this process alone: kernels are loaded from it, so no name that others could have taken before."""
    return Path(tempfile.mkdtemp(prefix=f"{APP}-"))
