"""A writer that is killed at each of its moments loses nothing, and the next run leaves nothing behind."""

import pytest

from tests.fuzz import kills


def test_a_kill_at_any_rename_loses_nothing_and_leaves_nothing():
    placed, _, wrong = kills.run_kills(0, 0, ("two renames",))
    assert not wrong and placed > 10, wrong


@pytest.mark.slow
def test_three_hundred_kills_lose_nothing_and_leave_nothing():
    placed, timed, wrong = kills.run_kills(300, 0)
    assert not wrong and placed + timed >= 300, wrong


@pytest.mark.parametrize("planted,said", [
    ("rests are not swept", "left"), ("the new one is written in place", "lost")])
def test_a_planted_fault_is_found(planted, said, monkeypatch):
    if said == "left":
        monkeypatch.setattr("core.system.atomic_file.sweep", lambda folder: None)
    else:
        monkeypatch.setitem(kills.WRITERS, "file", _in_place)
    assert any(said in line for line in kills.run_kills(0, 0, ("file",))[2])


def _in_place(folder, text):
    import os

    (folder / "f").write_text("a" * 500)
    os.rename(folder / "f", folder / "f")
    (folder / "f").write_text(text * 1000)
