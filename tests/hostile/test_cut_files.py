"""A model file that another process cuts while it is mapped: a sentence and exit 3, never a crash or a wrong number."""

import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from core.kernels.cpu import build
from core.system import mapped_file
from core.system.child import child_command, child_environment
from core.system.errors import FileError
from tests.support.small_models import write_model

CUT = """
import os, sys
from core.model import matmul
from core.formats import gguf_reader
where, path = sys.argv[1:3]
def cut(*args, kept={}, **named):
    kept["n"] = kept.get("n", 0) + 1
    if kept["n"] == (1 if where == "header" else 3):
        os.truncate(path, 64)
    return real(*args, **named)
home, name = (gguf_reader, "_read_counts") if where == "header" else (matmul, "multiply_fused")
real = getattr(home, name)
setattr(home, name, cut)
from apr_tui.cli.main import main
sys.exit(main(sys.argv[3:]))
"""
needs_kernels = pytest.mark.skipif(isinstance(build.library(), build.Absent), reason="no compiler: nothing guards")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "m.gguf", tokenizer="bpe")


def run(where, path, *words):
    command = [sys.executable, "-P", "-c", CUT, where, str(path), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(OMP_NUM_THREADS="1"),
                          timeout=60, check=False)


@needs_kernels
@pytest.mark.parametrize("where", ["header", "weights"])
def test_a_file_cut_while_it_is_read_is_a_sentence_and_exit_3(where, model, tmp_path):
    done = run(where, model, "trace", model, "--tokens", "1,2", "--threads", "1", "--out", tmp_path / "o")
    assert done.returncode == 3 and "became shorter" in done.stderr and str(model) in done.stderr, done.stderr
    assert "--no-mmap" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists() and os.listdir(tmp_path) == ["m.gguf"] and done.stdout == ""


def test_what_was_read_at_once_cannot_be_cut(model, tmp_path):
    whole = run("weights", shutil.copy(model, tmp_path / "other.gguf"), "trace", model, "--tokens", "1,2", "--quiet")
    cut = run("weights", model, "trace", model, "--tokens", "1,2", "--quiet", "--no-mmap")
    assert (cut.returncode, cut.stdout) == (0, whole.stdout) and model.stat().st_size == 64


def test_a_file_that_shrinks_before_it_is_whole_in_memory_is_refused(model, monkeypatch):
    monkeypatch.setenv(mapped_file.NO_MMAP, "1")
    real = os.preadv
    monkeypatch.setattr(mapped_file.os, "preadv", lambda n, room, at: real(n, room, at + (1 << 40)))
    with pytest.raises(FileError, match="became shorter"):
        mapped_file.map_file(model)


def test_the_error_names_the_files_that_are_cut(tmp_path):
    kept = []
    for name in ("whole", "cut", "gone", "replaced", "let go"):
        (tmp_path / name).write_bytes(bytes(100))
        kept.append(mapped_file.map_file(tmp_path / name))
    kept.pop()
    os.truncate(tmp_path / "let go", 50)
    os.truncate(tmp_path / "cut", 50)
    (tmp_path / "gone").unlink()
    (tmp_path / "new").write_bytes(b"short")
    os.replace(tmp_path / "new", tmp_path / "replaced")
    assert mapped_file.cut_files() == [str(tmp_path / "cut")]
    with pytest.raises(FileError, match="cut became shorter"):
        mapped_file.refuse_cut()


CONSOLE = f"""
import sys
sys.argv = ["x", "weights", sys.argv[1], sys.argv[1], "--tokens", "1,2"]
{CUT}
"""


@needs_kernels
@pytest.mark.slow
def test_the_console_closes_with_the_sentence_and_the_terminal_restored(model):
    main, side = pty.openpty()
    before = termios.tcgetattr(side)
    child = subprocess.Popen([sys.executable, "-P", "-c", CONSOLE, str(model)], stdin=side, stdout=side, stderr=side,
                             env=child_environment(TERM="xterm", OMP_NUM_THREADS="1"), start_new_session=True)
    said, ends = b"", time.monotonic() + 60
    while child.poll() is None and time.monotonic() < ends:
        if select.select([main], [], [], 0.1)[0]:
            said += os.read(main, 65536)
    child.kill()
    while select.select([main], [], [], 0.2)[0]:
        said += os.read(main, 65536)
    assert child.wait() == 3 and b"became shorter" in said.rpartition(b"\x1b[?1049l")[2], said[-2000:]
    assert termios.tcgetattr(side) == before


def test_other_commands_name_no_mmap_too():
    for name in ("trace", "check", "compare", "bisect", "convert"):
        done = subprocess.run([*child_command("apr_tui"), name, "--help"], capture_output=True, text=True,
                              env=child_environment(), check=False)
        assert "--no-mmap" in done.stdout, name
    assert Path(mapped_file.__file__).exists()
