"""Mutants of every reader at each run: none crashes, hangs, fills the memory or ends in a traceback."""

import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from core.system.errors import FileError
from tests.fuzz import runner
from tests.fuzz.doors import DOORS, ROOT, found_doors
from tests.fuzz.mutants import mutate
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS
from tests.fuzz.runner import fuzz, fuzz_apart, in_memory


@pytest.fixture
def folder(monkeypatch):
    """A folder of the memory, the cache in it."""
    with tempfile.TemporaryDirectory(prefix="apr-fuzz-", dir=in_memory()) as name:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.setenv(variable, name)
        yield Path(name)


@pytest.mark.parametrize("name", READERS)
def test_no_mutant_does_what_none_may(name, folder):
    tally = fuzz(name, range(READERS[name].each_run), 1, folder)
    assert not tally.failed, tally.examples


def test_every_function_that_opens_a_file_has_a_row_or_a_reason():
    found = found_doors()
    assert not found - DOORS.keys(), "add a row to tests/fuzz and say in doors.py which: a new reader"
    assert not DOORS.keys() - found, "it opens nothing any more"
    assert all(row in READERS or row.startswith(("of /proc", "what ", "chunks ", "a note ", "the package's "))
               for row in DOORS.values())


def test_every_row_s_reading_comes_by_the_functions_that_it_is_said_to_fuzz(monkeypatch):
    by_row = defaultdict(set)
    for door, row in DOORS.items():
        by_row[row].add(door)
    for row in by_row.keys() & READERS.keys():
        with tempfile.TemporaryDirectory(prefix="apr-fuzz-", dir=in_memory()) as name:
            for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
                monkeypatch.setenv(variable, name)
            path = READERS[row].make(Path(name))
            assert not by_row[row] - _called_by(lambda row=row, path=path: READERS[row].read(path)), row


def _called_by(read):
    called = set()

    def note(frame, event, argument):
        called.add((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        read()
    finally:
        sys.setprofile(None)
    return {f"{Path(path).relative_to(ROOT).as_posix()}:{name}" for path, name in called if path.startswith(str(ROOT))}


def test_mutants_are_the_same_for_a_seed_and_differ():
    data = b'{"a": 1, "b": [2, 3]}\n' * 3
    made = [mutate(data, random.Random(i)) for i in range(200)]
    assert made == [mutate(data, random.Random(i)) for i in range(200)] and len({*made} - {data}) > 150


FAULTS = {
    "exceptions": lambda path: {}["x"], "hangs": lambda path: [None for _ in iter(int, 1)],
    "memory": lambda path: [MemoryError] and (_ for _ in ()).throw(MemoryError),
    "refused": lambda path: (_ for _ in ()).throw(FileError("no")),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_counted(what, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "HANG_S", 0.05)
    planted = []

    def read(path):
        if planted:
            FAULTS[what](path)
        planted.append(path)

    monkeypatch.setitem(READERS, "planted", Reader(lambda folder: _written(folder / "f"), read))
    tally = fuzz("planted", range(2), 0, tmp_path)
    assert tally.counts[what] == 2 and tally.failed == (0 if what == "refused" else 2)


def test_a_crash_is_counted_and_gone_past(monkeypatch):
    import os
    import signal

    def read(path):
        if path.read_bytes() == b"3":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(runner, "mutant", lambda data, seed, index, reader: str(index).encode())
    monkeypatch.setitem(READERS, "planted", Reader(lambda folder: _written(folder / "f"), read))
    tally = fuzz_apart("planted", 6, 0)
    assert (tally.counts["crashes"], tally.counts["read"], tally.examples[0][:17]) == (1, 2, "crashes: mutant 3")


def _written(path):
    path.write_bytes(b"good")
    return path
