"""Where files go, and that they are whole or absent."""

import os
import threading
from pathlib import Path

import pytest

from core.system import paths
from core.system.atomic_file import atomic_file
from core.system.atomic_folder import atomic_folder


def test_xdg_variables_say_where_and_relative_ones_do_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert paths.cache_folder() == tmp_path / "c" / "apr-tui"
    assert paths.state_folder() == tmp_path / ".local" / "state" / "apr-tui"


@pytest.mark.parametrize("home", [None, "~nobody-here", "relative"])
def test_without_a_home_no_folder_is_relative_or_shared(monkeypatch, tmp_path, home):
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    paths._last_resort.cache_clear()
    found = paths.cache_folder()
    assert found.is_absolute() and "~" not in str(found) and found == paths.cache_folder()
    assert found.parent == tmp_path and found.stat().st_mode & 0o077 == 0
    paths._last_resort.cache_clear()


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as part:
        part.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f"]
    with atomic_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["f"]


def test_two_writers_of_one_file_do_not_share_a_part(tmp_path):
    met, whole = threading.Barrier(2, timeout=10), []

    def write(text):
        with atomic_file(tmp_path / "f") as part:
            part.write_text(text)
            met.wait()
            whole.append(part.read_text() == text)

    threads = [threading.Thread(target=write, args=(letter * 9,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole == [True, True] and Path(tmp_path / "f").read_text() in ("a" * 9, "b" * 9)


def test_a_folder_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "d"
    target.mkdir()
    (target / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as part:
        (part / "y").write_text("new")
        raise RuntimeError
    assert os.listdir(target) == ["x"] and os.listdir(tmp_path) == ["d"]
    with atomic_folder(target) as part:
        (part / "y").write_text("new")
    assert os.listdir(target) == ["y"] and os.listdir(tmp_path) == ["d"]
