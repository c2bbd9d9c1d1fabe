"""Say where a user's caches, logs and settings lie, and whether only that user can write to the cache.

What lies in a cache is believed, and kernels are run from it. So a cache folder that somebody else owns or may write to
is not used: a folder of this process alone takes its place, and cache_reason says why.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_dir, user_config_dir, user_state_dir

APP = "apr-tui"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return the folder of what can be made again: kernels, demonstration, token shards, rungs of a ladder."""
    found = _folder("XDG_CACHE_HOME", user_cache_dir)
    return found.resolve() if found is not None and not _stranger(found) else _last_resort()


def cache_reason() -> str:
    """Say why the cache is a folder of this process alone; "" where it is the user's own."""
    found = _folder("XDG_CACHE_HOME", user_cache_dir)
    return "no home folder is known" if found is None else _stranger(found)


def config_folder() -> Path | None:
    """Return the folder of what the user settled for every run; None where no home is known."""
    return _folder("XDG_CONFIG_HOME", user_config_dir)


def state_folder() -> Path:
    """Return the folder of logs."""
    return _folder("XDG_STATE_HOME", user_state_dir) or _last_resort()


def is_own(path: Path) -> bool:
    """Say whether a file or folder of the cache is there, no link, ours, and nobody else may write it.

    So must each folder be between it and the cache.
    """
    root = cache_folder()
    assert path.is_relative_to(root), f"{path} is not in the cache"
    try:
        return all(_is_ours(os.lstat(p)) for p in (path, *path.parents) if p.is_relative_to(root))
    except OSError:
        return False


def make_own(folder: Path) -> Path:
    """Make a folder of the cache, with those above it, for this user alone; OSError."""
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)
    return folder


def _folder(variable: str, usual: Callable[[str], str]) -> Path | None:
    """Follow the XDG base directories: a relative path in the variable does not count. None: no home is known."""
    said = os.environ.get(variable, "")
    try:
        found = os.path.join(said, APP) if os.path.isabs(said) else usual(APP)
    except RuntimeError:  # platformdirs knows no home
        return None
    return Path(found) if os.path.isabs(found) else None


def _stranger(folder: Path) -> str:
    """Say which folder on the way lets somebody else in; "" where none does. Our own one is closed where it is open."""
    own = folder.resolve()
    for path in (own, *own.parents):
        try:
            found = os.lstat(path)
            if path.name == APP and stat.S_ISDIR(found.st_mode) and _may_close(found):
                path.chmod(found.st_mode & ~OTHERS_WRITE & 0o7777)
                found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):  # whoever writes there says so
            continue
        except OSError as error:
            return f"{path} cannot be looked at: {error.strerror}"
        if found.st_uid not in (0, os.getuid()):
            return f"{path} belongs to another user"
        is_last = path == own
        if is_last and not _is_ours(found):
            return f"{path} is not ours alone to write"
        if not is_last and _lets_others_in(found):
            return f"others may write to {path}"
    return ""


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not found.st_mode & OTHERS_WRITE and not stat.S_ISLNK(found.st_mode)


def _may_close(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and bool(found.st_mode & OTHERS_WRITE)


def _lets_others_in(found: os.stat_result) -> bool:
    """Whether others may exchange what lies in a folder: never with the sticky bit; a user's own group is the user."""
    private = found.st_gid == os.getuid()
    writers = found.st_mode & (stat.S_IWOTH if private else OTHERS_WRITE)
    return bool(writers) and not found.st_mode & stat.S_ISVTX


@functools.cache
def _last_resort() -> Path:
    """A folder of this process alone, gone when it ends: a name that nobody could have taken before."""
    made = tempfile.mkdtemp(prefix=f"{APP}-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
