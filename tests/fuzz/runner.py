"""Give mutants to a reader and count crashes, hangs, memory and exceptions. Which mutants there are: mutants.py.

A refusal by an AprError is what a damaged file should end in; an answer is allowed too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.system.errors import AprError
from core.system.limits import MESSAGE_BYTES
from tests.fuzz.mutants import mutate
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS

HANG_S, MEMORY_BYTES = 2.0, 500 << 20
PORTION = 5000  # mutants of one child
COUNTED = ("crashes", "hangs", "memory", "exceptions")
LONG_MESSAGE = 1 << 20  # characters: it is cut for a person, but nobody should make so much of it
EXAMPLES = 5


class Hang(BaseException):
    """A mutant took longer than it may; no Exception, so that no reader takes it for its own."""


@dataclass
class Tally:
    """What came of some mutants."""

    mutants: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many did what none may."""
        return sum(self.counts[name] for name in COUNTED)

    def row(self) -> tuple[str | int, ...]:
        """The cells of a table behind the reader's name."""
        return (self.mutants, self.counts["refused"], *(self.counts[name] for name in COUNTED),
                f"{self.slowest_s * 1e3:.0f}", self.peak_bytes >> 20)

    def note(self, what: str, index: int, said: str = "") -> None:
        """Count it, and keep the first few with what repeats them."""
        self.counts[what] += 1
        if what in COUNTED and len(self.examples) < EXAMPLES:
            self.examples.append(f"{what}: mutant {index} {said}")


def mutant(data: bytes, seed: int, index: int, reader: Reader) -> bytes:
    """The mutant of a number: the same each time."""
    draw = random.Random((seed << 32) | index)
    changed = mutate(data, draw)
    return reader.mend(changed) if draw.random() < 0.9 else changed


def fuzz(name: str, indices: range, seed: int, folder: Path, told: mmap.mmap | None = None) -> Tally:
    """Read these mutants in this process. told: where the number in hand stands, for whoever outlives a crash."""
    reader, tally = READERS[name], Tally()
    path = reader.make(folder)
    good = path.read_bytes()
    manifest = path.with_name("manifest.json")  # where a sum may be set right for each
    told_sums = manifest.read_bytes() if manifest.exists() and manifest != path else None
    reader.read(path)  # the good one is read, and what is loaded at first use is loaded
    before = _peak()
    with _alarm(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's: it would stand on a user's terminal
        for index in indices:
            if told is not None:
                told[:8] = struct.pack("<q", index)
            path.write_bytes(mutant(good, seed, index, reader))
            _one(reader, path, index, tally)
            if told_sums is not None:
                manifest.write_bytes(told_sums)
            grown = _peak() - before
            tally.peak_bytes = max(tally.peak_bytes, grown)
            if grown > MEMORY_BYTES:
                tally.note("memory", index, f"{grown >> 20} MiB")
                before = _peak()
    return tally


def _one(reader: Reader, path: Path, index: int, tally: Tally, again: bool = False) -> None:
    """Read one, and count it. again: it has hung once, which on a busy machine may be the machine."""
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        reader.read(path)
        tally.note("read", index)
    except AprError as error:
        tally.note("refused" if error.code != 70 and len(str(error)) < LONG_MESSAGE else "exceptions", index,
                   str(error)[:MESSAGE_BYTES])
    except Hang:
        if not again:
            return _one(reader, path, index, tally, again=True)
        tally.note("hangs", index, "".join(traceback.format_exc().splitlines()[-4:]))
    except MemoryError:
        tally.note("memory", index)
    except BaseException as error:  # noqa: BLE001 (counting them is the work)
        tally.note("exceptions", index, f"{type(error).__name__}: {str(error)[:200]} "
                   + " ".join(line.strip() for line in traceback.format_tb(error.__traceback__)[-2:]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    tally.mutants += 1
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)


def fuzz_apart(name: str, n_mutant: int, seed: int, seconds: float = float("inf")) -> Tally:
    """Read so many mutants in children, a portion each, but begin none after so many seconds."""
    total, start, began = Tally(), 0, time.monotonic()
    while start < n_mutant and time.monotonic() - began < seconds:
        told = mmap.mmap(-1, 8)
        told[:8] = struct.pack("<q", start)
        end = min(start + PORTION, n_mutant)
        part, code = _in_child(name, range(start, end), seed, told)
        if part is None:
            index = struct.unpack("<q", told[:8])[0]
            part = Tally(mutants=index + 1 - start)
            part.note("crashes", index, f"status {code}")
            end = index + 1
        _add(total, part)
        start = end
    return total


def _in_child(name: str, indices: range, seed: int, told: mmap.mmap) -> tuple[Tally | None, int]:
    """Fork, fuzz, and read the tally from a pipe; None where the child crashed."""
    import pickle

    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        code = 1
        try:
            with (tempfile.TemporaryDirectory(prefix="apr-fuzz-", dir=in_memory()) as folder,
                  os.fdopen(theirs, "wb") as out):
                pickle.dump(fuzz(name, indices, seed, Path(folder), told), out)
            code = 0
        except BaseException:  # noqa: BLE001 (it is told as a crash)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = file.read()
    status = os.waitpid(child, 0)[1]
    return (pickle.loads(said) if status == 0 else None), status


def _add(total: Tally, part: Tally) -> None:
    total.mutants += part.mutants
    total.counts += part.counts
    total.slowest_s = max(total.slowest_s, part.slowest_s)
    total.peak_bytes = max(total.peak_bytes, part.peak_bytes)
    total.examples = [*total.examples, *part.examples][:EXAMPLES]


def in_memory() -> str | None:
    """A folder of the memory, where writing a mutant costs nothing; None: the usual one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
