"""Make a folder that is whole or absent: written under a temporary name beside its own, then renamed.

Of what it replaces it knows what the manifest lists, so that --force takes away what apr-tui wrote and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.system.disk import exchange, sync, sync_tree
from core.system.errors import FileError, OutputError, UsageError
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES
from core.system.regular_file import read_file
from core.system.rests import OLD, PART, own_name, sweep

MANIFEST = "manifest.json"
FAMILY = re.compile(r"apr-tui(-corpus)?/[0-9]+")  # of the schemas of all manifests
COSTS = ("kl.json", "damage.json", "audit.json")  # makes a folder one of a cost or an audit
SIDES, TRACE = ("a", "b"), "trace"              # bundles beside a verdict: of a pair, of a check
REPRODUCER = "reproducer"                       # beside a bisection's
CASE = {"case.safetensors", "case.json", "test_case.py"}
RUN = {"__pycache__", ".pytest_cache"}          # what pytest leaves in a reproducer
VOCABULARY = {"vocab.json", "merges.txt"}       # beside the shards of a corpus


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an output folder before the work starts: UsageError where it exists, OutputError if it cannot be made."""
    with _told(out):
        _refuse_existing(out, force)
        target = out.resolve()  # out may be "." or end in "..", which name nothing
        sweep(target.parent)
        probe = own_name(_nearest_folder(target) / target.name, PART)
        probe.mkdir()
        probe.rmdir()


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes target's place when the block ends well, and is gone when not. OSError."""
    sweep(target.parent)
    part = own_name(target, PART)
    try:
        part.mkdir(parents=True)
        yield part
        sync_tree(part)
        _put_in_place(part, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes out when the block ends well, and is gone when it does not.

    With force a bundle that stands there is replaced, and only once the new one is complete.
    """
    with _told(out):
        _refuse_existing(out, force)
        target = out.resolve()
        made = make_parents(target.parent)
        try:
            with atomic_folder(target) as part:
                yield part
                _refuse_existing(target, force)  # another process may have made it meanwhile
        except BaseException:
            remove_empty(made)
            raise


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """Say what the system refused by the name that was asked for, not by that of a part or of a folder within."""
    try:
        yield
    except (OSError, OutputError) as error:
        refused = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(refused, OSError):
            raise
        reason = refused.strerror or str(refused)
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
    strange = strange_in(out)
    if strange is not None:
        raise UsageError(f"{out} exists and is not a bundle of apr-tui alone ({strange}), so it is left as it is. "
                         "Give another folder.")
    if not force:
        raise UsageError(f"{out} already holds a bundle. Use --force to replace it, or give another folder.")


def strange_in(folder: Path) -> str | None:
    """Say what shows that apr-tui did not write a folder, or not all of it; None where all of it is its own."""
    try:
        if not os.path.lexists(folder / MANIFEST):
            return f"it has no {MANIFEST}"
        manifest = from_json(read_file(folder / MANIFEST, DOCUMENT_BYTES, ""), MANIFEST, "")
    except FileError:
        return f"its {MANIFEST} cannot be read"
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not (isinstance(schema, str) and FAMILY.fullmatch(schema)):
        return f"the schema of its {MANIFEST} is {schema!r:.80}"
    files = _listed(manifest)
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path.is_file() if path.name in files else path.is_dir()):
            return f"it holds {path.name}, which apr-tui did not write"
        if path.name in files:
            continue
        inside = _strange_folder(path, "verdict.json" in files)
        if inside is not None:
            return inside
    return None


def _listed(manifest: dict[str, object]) -> set[str]:
    """The files that a manifest speaks of, itself among them."""
    sums, shards = manifest.get("sha256"), manifest.get("shards")
    files = {MANIFEST, *(sums if isinstance(sums, dict) else ())}
    if isinstance(shards, list):
        files |= VOCABULARY | {str(row.get("file")) for row in shards if isinstance(row, dict)}
    return files


def _strange_folder(folder: Path, is_beside_verdict: bool) -> str | None:
    """What is strange in a folder inside: beside a verdict stand a bundle of each side, and the reproducer."""
    name = folder.name
    if is_beside_verdict and name in (*SIDES, TRACE):
        inside = strange_in(folder)
        return None if inside is None else f"in {name}: {inside}"
    if is_beside_verdict and name == REPRODUCER:
        others = sorted(path.name for path in folder.iterdir() if path.name not in CASE | RUN)
        return f"in {name}: it holds {others[0]}, which apr-tui did not write" if others else None
    return f"it holds the folder {name}, which apr-tui did not write"


def _nearest_folder(path: Path) -> Path:
    """Return the deepest folder above path that exists; OSError where a file stands in the way."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def make_parents(folder: Path) -> list[Path]:
    """Make a folder and those above it; return those that were not there. OSError."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def remove_empty(made: Sequence[Path]) -> None:
    """Remove the folders that make_parents made, as far as nothing lies in them."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _put_in_place(part: Path, target: Path) -> None:
    if not target.exists():
        os.rename(part, target)
        return
    if exchange(part, target):
        shutil.rmtree(part, ignore_errors=True)
        return
    old = own_name(target, OLD)  # where a process dies between the two, sweep puts it back
    os.rename(target, old)
    try:
        os.rename(part, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
