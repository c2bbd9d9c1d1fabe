"""Compile the kernels once into the user's cache, load them, and say why not where that fails. It computes nothing.

The choice is made once in a process and kept, so that a run has one path. APR_TUI_KERNEL=decode, or a level's name,
overrides it: to reproduce another machine's bits, or to go round a compiler that is at fault.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.kernels.cpu.instruction_sets import Level, usable_levels
from core.system.paths import cache_folder

FUSED = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")  # in the order of LAYOUTS in blocks.h
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno")
SHARED = ("-fvisibility=hidden", "-shared", "-fPIC", "-pthread")
COMPILE_SECONDS = 60  # 5 on an idle machine
KEPT_BYTES = 1 << 30
OVERRIDE = "APR_TUI_KERNEL"
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded kernels of one level."""

    level: Level
    reason: str
    multiply: Callable[..., int]
    measure: Callable[..., int]
    massive: Callable[..., int]
    correlate: Callable[..., int]


@dataclass(frozen=True, slots=True)
class Absent:
    """No kernels here: decode-then-multiply serves, for this reason."""

    reason: str


class _NoKernel(Exception):
    """Why a level cannot be had."""


@functools.cache
def library() -> Library | Absent:
    """Return this machine's kernels, compiled first where the cache has none (5 seconds)."""
    override = os.environ.get(OVERRIDE, "")
    if override == "decode":
        return Absent(f"{OVERRIDE}=decode")
    levels = usable_levels()
    if override:
        names = ", ".join(v.name for v in levels)
        levels = tuple(v for v in levels if v.name == override)
        if not levels:
            return Absent(f"{OVERRIDE}={override}: this machine has {names} or decode")
    failures: dict[str, str] = {}
    reason = f"{OVERRIDE}={override}" if override else "the best for this processor"
    for level in levels:
        try:
            return load(level, "; ".join((reason, *(f"not {name}: {why}" for name, why in failures.items()))))
        except _NoKernel as error:
            failures[level.name] = str(error)
    one = set(failures.values())
    return Absent(one.pop() if len(one) == 1 else "; ".join(f"{name}: {why}" for name, why in failures.items()))


def must_compile() -> bool:
    """Say whether library() will compile first, so that a caller can show that it does."""
    target = _object_file(usable_levels()[0])
    known = target.is_file() or _note_of(target).is_file()
    return os.environ.get(OVERRIDE) != "decode" and not known and _compiler() is not None


def pending_build() -> Path | None:
    """The build that a run would first compile; None where one is there, or none can be had."""
    asked = os.environ.get(OVERRIDE, "")
    if asked == "decode" or _compiler() is None:
        return None
    for level in usable_levels():
        target = _object_file(level)
        if asked not in ("", level.name) or _note_of(target).is_file():
            continue
        return None if target.is_file() else target
    return None


def load(level: Level, reason: str) -> Library:
    """Load one level's kernels, compiled where absent; raises _NoKernel."""
    path = _object_file(level)
    if not path.is_file():
        path = _compile(level, path)
    try:
        shared = ctypes.CDLL(str(path))
        multiply, measure, ready = shared.multiply, shared.measure, shared.ready
        massive, correlate = shared.massive, shared.correlate
    except (OSError, AttributeError) as error:
        raise _NoKernel(f"the compiled kernels do not load: {error}") from error
    if not ready():
        raise _NoKernel("the operating system does not let programs use it")
    _keep_freed_memory()
    size, pointer, count, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_double
    multiply.argtypes = (count, count, pointer, size, size, pointer, size, size, pointer, size, count)
    measure.argtypes = (pointer, size, pointer, count)
    massive.argtypes = (pointer, size, size, real, real, count, pointer)
    correlate.argtypes = (pointer, pointer, size, size, pointer)
    return Library(level, reason, multiply, measure, massive, correlate)


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: a forward takes and frees the same few blocks, and new pages cost 5 % of it."""
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(mmap_threshold, KEPT_BYTES)
            libc.mallopt(trim_threshold, KEPT_BYTES)


def _compile(level: Level, target: Path) -> Path:
    """Compile into target, whole or not at all; into a temporary folder where the cache cannot be written."""
    compiler = _compiler()
    if _note_of(target).is_file():
        said = _note_of(target).read_text()
        raise _NoKernel(f"{compiler} failed before: {said} (to try again, delete {target.parent})")
    if compiler is None:
        raise _NoKernel(f"no C++ compiler was found ({', '.join(COMPILERS)}); with one, a run is several times faster")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = tempfile.mkdtemp(dir=target.parent)
    except OSError as error:
        raise _NoKernel(f"the cache {target.parent} cannot be written: {error.strerror}") from error
    try:
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, *SHARED, *level.flags, *map(str, sorted(HERE.glob("*.cpp"))), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, errors="replace")
        if done.returncode:
            if "error" in done.stderr:  # not where a signal ended it
                made.write_text(_first_error(done.stderr))
                made.replace(_note_of(target))
            raise _NoKernel(f"{compiler} failed: {_first_error(done.stderr)}")
        made.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        raise _NoKernel(f"{compiler} failed: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _note_of(target: Path) -> Path:
    """Where a failed build leaves its reason, so that it is not tried at every start."""
    return target.with_suffix(".failed")


def _first_error(said: str) -> str:
    lines = said.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])


def _compiler() -> str | None:
    if sys.platform == "win32":
        return None
    names = filter(None, (os.environ.get("CXX"), *COMPILERS))
    return next(filter(None, map(shutil.which, names)), None)


def _object_file(level: Level) -> Path:
    """Where a level's build is kept: under a digest of the sources and the flags."""
    digest = hashlib.sha256(repr((FLAGS, SHARED, level.flags)).encode())
    for source in sorted(HERE.glob("*.cpp")) + sorted(HERE.glob("*.h")):
        digest.update(source.read_bytes())
    return cache_folder() / f"kernels-{digest.hexdigest()[:12]}" / f"{level.name}.so"
