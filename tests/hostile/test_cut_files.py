"""A model file that another process cuts while it is mapped: a sentence and exit 3, never a crash or a wrong number."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest

from apr_tui.cli.commands import command_parser
from core.kernels.cpu import build
from core.system import mapped_file
from core.system.child import child_environment
from core.system.errors import FileError
from tests.support.small_models import write_model

CUT = """
import os, sys
where, path = sys.argv[1:3]
if where == "header":
    from core.formats import gguf_reader as home
else:
    from core.model import matmul as home
    fused = "multiply_fused" if where == "weights" else "_decode_multiply"
def cut(*args, kept={}, **named):
    kept["n"] = kept.get("n", 0) + 1
    if kept["n"] == (1 if where == "header" else 3):
        os.truncate(path, 64)
    return real(*args, **named)
name = "_read_counts" if where == "header" else fused
real = getattr(home, name)
setattr(home, name, cut)
from apr_tui.cli.main import main
sys.argv = sys.argv[2:]
sys.exit(main())
"""
needs_kernels = pytest.mark.skipif(isinstance(build.library(), build.Absent), reason="no compiler: nothing guards")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "m.gguf", tokenizer="bpe")


def run(where, path, *words, **more):
    command = [sys.executable, "-P", "-c", CUT, where, str(path), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(OMP_NUM_THREADS="1", **more),
                          timeout=60, check=False)


@pytest.mark.parametrize("where,kernel", [
    pytest.param("header", "", marks=needs_kernels), pytest.param("weights", "", marks=needs_kernels),
    ("header", "decode"), pytest.param("decoded", "decode", marks=pytest.mark.slow)])
def test_a_file_cut_while_it_is_read_is_a_sentence_and_exit_3(where, kernel, model, tmp_path):
    """decode: no library guards, as where there is no compiler."""
    done = run(where, model, "trace", model, "--tokens", "1,2", "--threads", "1", "--out", tmp_path / "o",
               APR_TUI_KERNEL=kernel)
    assert done.returncode == 3 and "became shorter" in done.stderr, (done.returncode, done.stderr)
    assert kernel or str(model) in done.stderr
    assert "--no-mmap" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists() and os.listdir(tmp_path) == ["m.gguf"] and done.stdout == ""


@pytest.mark.slow
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
sys.argv = ["x", sys.argv[1], sys.argv[2], sys.argv[2], "--tokens", "1,2"]
{CUT}
"""


@pytest.mark.slow
@pytest.mark.parametrize("where,kernel", [pytest.param("weights", "", marks=needs_kernels), ("decoded", "decode")])
def test_the_console_closes_with_the_sentence_and_the_terminal_restored(where, kernel, model):
    main, side = pty.openpty()
    before = termios.tcgetattr(side)
    command = [sys.executable, "-P", "-c", CONSOLE, where, str(model)]
    child = subprocess.Popen(command, stdin=side, stdout=side, stderr=side,
                             env=child_environment(TERM="xterm", OMP_NUM_THREADS="1", APR_TUI_KERNEL=kernel),
                             start_new_session=True)
    said, ends = b"", time.monotonic() + 60
    while child.poll() is None and time.monotonic() < ends:
        if select.select([main], [], [], 0.1)[0]:
            said += os.read(main, 65536)
    child.kill()
    while select.select([main], [], [], 0.2)[0]:
        said += os.read(main, 65536)
    assert child.wait() == 3 and b"became shorter" in said.rpartition(b"\x1b[?1049l")[2], said[-2000:]
    assert termios.tcgetattr(side) == before


WORK = """
import os, signal, sys, time
from apr_tui.parent import go_on_in_child
first = os.getpid()
go_on_in_child()
assert os.getppid() == first
print(os.getpid(), flush=True)
signal.signal(signal.SIGINT, lambda *_: sys.exit(42))
"""


@pytest.mark.parametrize("ends,code,said", [
    ("sys.exit(5)", 5, ""), ("os._exit(0)", 0, ""), ("os.kill(os.getpid(), signal.SIGBUS)", 3, "became shorter"),
    ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, ""), ("raise ValueError", 1, "ValueError")])
def test_a_parent_ends_as_the_child_that_works(ends, code, said):
    done = subprocess.run([sys.executable, "-P", "-c", f"{WORK}\n{ends}"], capture_output=True, text=True, check=False,
                          env=child_environment())
    assert done.returncode == code and said in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 42), (signal.SIGTERM, -signal.SIGTERM),
                                         (signal.SIGKILL, -signal.SIGKILL)])
def test_what_is_sent_to_the_parent_reaches_the_child(number, code):
    parent = subprocess.Popen([sys.executable, "-P", "-c", f"{WORK}\ntime.sleep(30)"], stdout=subprocess.PIPE,
                              env=child_environment())
    child = int(parent.stdout.readline())
    time.sleep(0.1)
    parent.send_signal(number)
    assert parent.wait(10) == code
    ends = time.monotonic() + 5
    while os.path.exists(f"/proc/{child}") and time.monotonic() < ends:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{child}")


def test_pages_that_are_let_go_take_no_memory(tmp_path):
    (tmp_path / "m").write_bytes(bytes(64 << 20))
    data = mapped_file.map_file(tmp_path / "m")
    sizes = []
    for step in (lambda: None, lambda: data.sum(), lambda: mapped_file.drop_pages(data[100:])):
        step()
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * 4096)
    assert sizes[1] - sizes[0] > 60 << 20 and sizes[2] - sizes[0] < 4 << 20, sizes


def test_every_command_that_opens_a_model_takes_no_mmap():
    for name in ("trace", "check", "compare", "bisect", "convert"):
        assert "--no-mmap" in command_parser(name).format_help(), name
