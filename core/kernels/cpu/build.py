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
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.kernels.cpu.instruction_sets import Level, usable_levels
from core.system.atomic_file import atomic_file
from core.system.child import find_program, run_program
from core.system.mapped_file import CUT_SIGNAL
from core.system.paths import cache_folder, cache_reason, is_own, make_own

TOP_CHANNELS = 8  # that a stage's largest peaks are told of; TOP in statistics.cpp
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno")
SHARED = ("-fvisibility=hidden", "-shared", "-fPIC", "-pthread")
COMPILE_SECONDS = 240  # 10 on an idle machine
BUILD_BYTES = 16 << 20  # the library and the compiler's own files, which are put beside it
KEPT_BYTES = 1 << 30
OVERRIDE = "APR_TUI_KERNEL"
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded kernels of one level."""

    level: Level
    reason: str
    multiply: Callable[..., int]
    multiply_experts: Callable[..., int]
    decode: Callable[..., int]
    take_grid: Callable[..., int]
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
    """Return this machine's kernels, compiled first where the cache has none (10 seconds)."""
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
    if cache_reason():
        reason += f"; compiled for this run alone, since {cache_reason()}"
    for level in levels:
        try:
            return load(level, "; ".join((reason, *(f"not {name}: {why}" for name, why in failures.items()))))
        except _NoKernel as error:
            failures[level.name] = str(error)
    one = set(failures.values())
    return Absent(one.pop() if len(one) == 1 else "; ".join(f"{name}: {why}" for name, why in failures.items()))


def pending_build() -> Path | None:
    """Return what library() would compile first; None where a build is there, or none can be had."""
    asked = os.environ.get(OVERRIDE, "")
    if asked == "decode" or _compiler() is None:
        return None
    for level in usable_levels():
        target = _object_file(level)
        if asked in ("", level.name) and not is_own(_note_of(target)):
            return None if _is_whole(target) else target
    return None


def guard_early() -> bool:
    """Guard mapped files from now on, where the kernels are compiled; else it begins with their first product, if ever.

    Says whether they are guarded now.
    """
    return pending_build() is None and not isinstance(library(), Absent)


def _guard(shared: ctypes.CDLL) -> None:
    """Have a mapped file that is cut told to the main thread, where that handles CUT_SIGNAL; else SIGBUS stays fatal.

    Nobody may go on with the zeros that stand for what is gone.
    """
    if CUT_SIGNAL is not None and callable(signal.getsignal(CUT_SIGNAL)):
        shared.guard_maps(ctypes.cast(ctypes.pythonapi.PyErr_SetInterruptEx, ctypes.c_void_p), int(CUT_SIGNAL))


def load(level: Level, reason: str) -> Library:
    """Load one level's kernels, compiled where absent; raises _NoKernel."""
    path = _object_file(level)
    if not _is_whole(path):
        _compile(level, path)
    try:
        shared = ctypes.CDLL(str(path))
        multiply, multiply_experts, measure = shared.multiply, shared.multiply_experts, shared.measure
        massive, correlate, decode, take_grid = shared.massive, shared.correlate, shared.decode, shared.take_grid
    except (OSError, AttributeError) as error:
        raise _NoKernel(f"the compiled kernels do not load: {error}") from error
    if not shared.ready():
        raise _NoKernel("the operating system does not let programs use it")
    _guard(shared)
    _keep_freed_memory()
    size, pointer, count, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_double
    text = ctypes.c_char_p
    multiply.argtypes = (text, count, pointer, size, size, pointer, size, size, pointer, size, count)
    multiply_experts.argtypes = (text, count, pointer, size, size, *[pointer] * 4, size, pointer, count)
    decode.argtypes = (text, pointer, size, size, pointer, count)
    take_grid.argtypes = (text, pointer, size)
    measure.argtypes = (pointer, size, pointer, size, pointer, size, real, real, count)
    massive.argtypes = (pointer, size, size, real, real, count, pointer)
    correlate.argtypes = (pointer, pointer, size, size, pointer)
    return Library(level, reason, multiply, multiply_experts, decode, take_grid, measure, massive, correlate)


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: a forward takes and frees the same few blocks, and new pages cost 5 % of it."""
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(mmap_threshold, KEPT_BYTES)
            libc.mallopt(trim_threshold, KEPT_BYTES)


def _is_whole(library: Path) -> bool:
    """Say whether a build of ours is there, all of it: one that was cut would end the process where it is used."""
    try:
        return is_own(library) and is_own(_sum_of(library)) and _sum_of(library).read_text() == _digest(library)
    except (OSError, ValueError):
        return False


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _compile(level: Level, target: Path) -> None:
    """Have target compiled, by one process of those that start at once; raises _NoKernel."""
    compiler = _compiler()
    if compiler is None:
        raise _NoKernel(f"no C++ compiler was found ({', '.join(COMPILERS)}); with one, a run is several times faster")
    try:
        make_own(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < BUILD_BYTES:  # a compiler would find it out after a minute, at each level and each start
            raise _NoKernel(f"{target.parent} has room for {free} bytes; a build needs {BUILD_BYTES}")
        if target.exists() and not is_own(target.parent):
            raise _NoKernel(f"{target.parent} is not ours alone; delete it")
        with _alone_in(target.parent):
            if not _is_whole(target):
                _compile_alone(compiler, level, target)
    except OSError as error:
        raise _NoKernel(f"the cache {target.parent} cannot be written: {error.strerror}") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that compile into a folder; where it cannot be locked, each compiles for itself."""
    import fcntl  # no Windows has it, nor a compiler that this would call

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: each file is renamed whole all the same
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _compile_alone(compiler: str, level: Level, target: Path) -> None:
    """Compile into target, whole or not at all; OSError, and _NoKernel, at once where it failed before."""
    if is_own(_note_of(target)):
        said = _note_of(target).read_text()
        raise _NoKernel(f"{compiler} failed before: {said} (to try again, delete {target.parent})")
    with atomic_file(target) as made:
        made.touch()  # whether it can be written shows before the work
        failure = _run_compiler(compiler, level, made)
        if "error" in failure:  # not where a signal ended it
            with atomic_file(_note_of(target)) as note:
                note.write_text(_first_error(failure))
        if failure:
            raise _NoKernel(f"{compiler} failed: {_first_error(failure)}")
    with atomic_file(_sum_of(target)) as part:
        part.write_text(_digest(target))


def _run_compiler(compiler: str, level: Level, made: Path) -> str:
    """Compile into made and return what a compiler that fails says, else ""; _NoKernel where it cannot run."""
    command = [compiler, *FLAGS, *SHARED, *level.flags, *map(str, sorted(HERE.glob("*.cpp"))), "-o", str(made)]
    try:
        done = run_program(command, COMPILE_SECONDS, TMPDIR=str(made.parent))
    except (OSError, subprocess.SubprocessError) as error:
        raise _NoKernel(f"{compiler} failed: {error}") from error
    return (done.stderr.strip() or "no message") if done.returncode else ""


def _note_of(target: Path) -> Path:
    """Where a failed build leaves its reason, so that it is not tried at every start."""
    return target.with_suffix(".failed")


def _first_error(said: str) -> str:
    lines = said.splitlines()
    return next((line for line in lines if "error" in line), lines[0])


def _compiler() -> str | None:
    if sys.platform == "win32":
        return None
    names = filter(None, (os.environ.get("CXX"), *COMPILERS))
    return next(filter(None, map(find_program, names)), None)


def _object_file(level: Level) -> Path:
    """Where a level's build is kept: under a digest of the sources and the flags."""
    digest = hashlib.sha256(repr((FLAGS, SHARED, level.flags)).encode())
    for source in sorted(HERE.glob("*.cpp")) + sorted(HERE.rglob("*.h")):
        digest.update(source.read_bytes())
    return cache_folder() / f"kernels-{digest.hexdigest()[:12]}" / f"{level.name}.so"
