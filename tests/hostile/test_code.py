"""Whose code runs: no child sees the working folder, and nothing of a cache is believed that others may write."""

import ast
import os
import stat
from pathlib import Path

import pytest

from core.demo import files as demo
from core.formats import identity
from core.kernels.cpu import build
from core.proof.ladder_cache import _read as read_ladder
from core.system import child, paths

ROOT = Path(__file__).parents[2]
STARTERS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
OS_STARTERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


def modules():
    return [p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py")]


def test_every_process_is_started_by_one_file():
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner, name = node.value.id, node.attr
                starts = owner == "subprocess" and name in STARTERS
                if starts or (owner == "os" and (name in OS_STARTERS or name.startswith(("exec", "spawn")))):
                    found.add(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                if any(n.split(".")[0] in ("multiprocessing", "pty") for n in names):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"core/system/child.py"}


def test_a_program_is_not_taken_from_the_working_folder(tmp_path, monkeypatch):
    for name in ("nvidia-smi", "c++"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    for path in (".", "", ":.", "bin:"):
        monkeypatch.setenv("PATH", path)
        assert child.find_program("nvidia-smi") is None and build._compiler() is None
        with pytest.raises(FileNotFoundError):
            child.run_program(("nvidia-smi",), 5)
    monkeypatch.setenv("PATH", f".:{tmp_path}")
    assert child.find_program("c++") == str(tmp_path / "c++") and not (tmp_path / "ran").exists()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder in a home of ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    paths._last_resort.cache_clear()
    yield tmp_path / "c" / "apr-tui"
    paths._last_resort.cache_clear()


def own_stat(monkeypatch, strange: Path, **changes):
    """Let one path look like another user's: no test may need to be root."""
    real = os.lstat

    def lstat(path, **more):
        found = real(path, **more)
        if Path(path) != strange:
            return found
        fields = list(found)
        fields[stat.ST_UID] = changes.get("uid", found.st_uid)
        return os.stat_result(fields)

    monkeypatch.setattr(os, "lstat", lstat)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_a_cache_that_others_may_write_is_not_used_and_that_is_said(cache, monkeypatch, level, how):
    paths.make_own(cache)
    strange = (cache, cache.parent)[level]
    if how == "mode":
        strange.chmod(0o777)
    else:
        own_stat(monkeypatch, strange, uid=54321)
    found = paths.cache_folder()
    if (level, how) == (0, "mode"):  # ours: it is closed, and what others have left in it is not believed
        assert found == cache and stat.S_IMODE(cache.stat().st_mode) == 0o755
        return
    assert found != cache and stat.S_IMODE(found.stat().st_mode) == 0o700
    assert str(strange) in paths.cache_reason()


@pytest.mark.parametrize("at", ["file", "folder", "link"])
def test_what_others_have_put_into_the_cache_is_not_believed(cache, monkeypatch, at):
    """Every cache that is believed: a library, the demonstration, digests, rungs."""
    plain = {
        "kernels-x/a.so": lambda p: build._is_whole(p), "demo/demo.gguf": lambda p: paths.is_own(p),
        "digests/d.json": lambda p: identity._kept(p) is not None, "ladders/l.jsonl": lambda p: bool(read_ladder(p)),
    }
    monkeypatch.setattr(identity, "_home", lambda path: path)
    for name, is_believed in plain.items():
        path = cache / name
        paths.make_own(path.parent)
        path.write_bytes(b'["1.qkv", 0.5]\n' if path.suffix == ".jsonl" else b'{"stamp": [1], "digest": "x"}')
        build._sum_of(path).write_text(build._digest(path))
        assert is_believed(path), name
        if at == "file":
            path.chmod(0o666)
        elif at == "folder":
            path.parent.chmod(0o777)
        else:
            path.rename(cache / "elsewhere")
            path.symlink_to(cache / "elsewhere")
        assert not is_believed(path), (name, at)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + b"?"])
def test_a_library_that_is_cut_or_changed_is_compiled_again(cache, change):
    path = cache / "kernels-x" / "plain.so"
    paths.make_own(path.parent)
    path.write_bytes(b"\x7fELF and so on")
    build._sum_of(path).write_text(build._digest(path))
    assert build._is_whole(path)
    path.write_bytes(change(path.read_bytes()))
    assert not build._is_whole(path)
    build._sum_of(path).unlink()
    assert not build._is_whole(path)


def test_a_demonstration_of_another_is_made_anew(cache, monkeypatch):
    for path in demo.ensure_demo():
        path.write_bytes(path.read_bytes())
    made = demo.ensure_demo()[0]
    made.chmod(0o666)
    before = made.stat().st_ino
    assert demo.ensure_demo()[0].stat().st_ino != before and not made.stat().st_mode & 0o022
