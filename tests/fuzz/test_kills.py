"""A writer that is killed at each of its moments loses nothing, and the next run leaves nothing behind."""

import pytest

from tests.fuzz import kills
from tests.fuzz.writers import WRITERS, Writer, _is_one_text


def wrong(names, n_kill=0):
    return [line for tally in kills.run_kills(n_kill, 0, names).values() for line in tally.wrong]


@pytest.mark.parametrize("name", [pytest.param("two renames", marks=pytest.mark.slow), "run.json"])
def test_a_kill_at_any_rename_loses_nothing_and_leaves_nothing(name):
    tally = kills.run_kills(0, 0, (name,))[name]
    assert not tally.wrong and tally.placed > 5, tally


@pytest.mark.slow
def test_eight_hundred_kills_of_every_writer_lose_nothing_and_leave_nothing():
    tallies = kills.run_kills(800, 0)
    assert not [line for t in tallies.values() for line in t.wrong] and set(tallies) == set(WRITERS)
    assert all(t.placed > 5 for t in tallies.values())


@pytest.mark.parametrize("planted,said", [
    ("rests are not swept", "left"), ("the new one is written in place", "lost")])
def test_a_planted_fault_is_found(planted, said, monkeypatch):
    if said == "left":
        monkeypatch.setattr("core.system.atomic_file.sweep", lambda folder: None)
    else:
        monkeypatch.setitem(WRITERS, "file", Writer(_in_place, _is_one_text))
    assert any(said in line for line in wrong(("file",)))


def _in_place(folder, text):
    import os

    (folder / "f").write_text("a" * 500)
    os.rename(folder / "f", folder / "f")
    (folder / "f").write_text(text * 1000)
