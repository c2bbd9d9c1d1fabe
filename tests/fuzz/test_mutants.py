"""A few mutants of every reader at each run: none crashes, hangs, fills the memory or ends in a traceback."""

import random

import pytest

from core.system.errors import FileError
from tests.fuzz import runner
from tests.fuzz.mutants import mutate
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.runner import fuzz, fuzz_apart

N_CHEAP, N_BUNDLE = 120, 15  # a bundle is three tables: 30 ms each


@pytest.mark.parametrize("name", READERS)
def test_no_mutant_does_what_none_may(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tally = fuzz(name, range(N_BUNDLE if "bundle" in name else N_CHEAP), 1, tmp_path)
    assert not tally.failed, tally.examples


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
