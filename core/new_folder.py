"""Make a folder that is whole or absent: written under a temporary name beside its own, then renamed.

Of a bundle it knows only the name of the manifest, so that --force replaces bundles and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from core.errors import OutputError, UsageError

MANIFEST = "manifest.json"


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an output folder before the work starts: UsageError where it exists, OutputError if it cannot be made."""
    with _told(out):
        _refuse_existing(out, force)
        target = out.resolve()  # out may be "." or end in "..", which name nothing
        probe = _free_name(_nearest_folder(target) / target.name, "probe")
        probe.mkdir()
        probe.rmdir()


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes out when the block ends well, and is gone when it does not.

    With force a bundle that stands there is replaced, and only once the new one is complete.
    """
    with _told(out):
        _refuse_existing(out, force)
        target = out.resolve()
        made = _make_parents(target.parent)
        part = _free_name(target, "part")
        try:
            part.mkdir()
            yield part
            _put_in_place(part, target, force)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{out} could not be written: {reason}. Nothing was left behind. Give another folder, or free some space.",
        ) from error


def _refuse_existing(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"{out} exists and is no folder. Give another name to --out.")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        why = f"is not a bundle (it has no {MANIFEST}), so it is left alone"
        raise UsageError(f"{out} exists and {why}. Give another folder.")
    if not force:
        raise UsageError(f"{out} already holds a bundle. Use --force to replace it, or give another folder.")


def _nearest_folder(path: Path) -> Path:
    """Return the deepest folder above path that exists; OSError where a file stands in the way."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders above; return those that were not there."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _free_name(target: Path, ending: str) -> Path:
    names = (target.with_name(f".{target.name}.{os.getpid()}.{i}.{ending}") for i in range(1 << 20))
    return next(name for name in names if not name.exists())


def _put_in_place(part: Path, target: Path, force: bool) -> None:
    if not target.exists():
        part.rename(target)
        return
    _refuse_existing(target, force)  # somebody may have been faster
    old = _free_name(target, "old")
    target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
