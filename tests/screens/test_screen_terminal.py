"""The console at a real terminal (a pty): how it ends, what it leaves behind, what it writes, what it imports."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from textual.app import App
from textual.drivers._writer_thread import WriterThread
from textual.drivers.linux_driver import LinuxDriver

from apr_tui.app import Console
from apr_tui.request import Request
from apr_tui.shutdown import restorer

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tests.support.fake_session import FakeSession
from apr_tui.run import run_console
from apr_tui.request import Request
fake = FakeSession({fake})
sys.exit(run_console(Request(Path("tiny.gguf")), fake))
"""


class Terminal:
    """A process at a pty of 80 x 24."""

    def __init__(self, fake: str = "", **env: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            known = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "COLORFGBG": "15;0", "PYTHONPATH": str(ROOT)}
            kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM", "APR_TUI_ASCII")}
            os.execve(sys.executable, [sys.executable, "-c", SCRIPT.format(fake=fake)], kept | known | env)
        termios.tcsetwinsize(self.fd, (24, 80))
        self.modes = termios.tcgetattr(self.fd)
        self.out = b""

    def read(self, text: bytes = b"\0never", seconds: float = 20.0) -> None:
        """Read until the text was written, or the end."""
        end = time.monotonic() + seconds
        while text not in self.out and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.out += os.read(self.fd, 65536) or b""
                except OSError:
                    return

    def code(self, seconds: float = 20.0) -> int:
        """Wait for the end and return the exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                self.read(seconds=0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it did not end")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "ctrl-c", "q"])
def test_it_ends_cleanly_while_a_trace_runs(how):
    terminal = Terminal("stop_at=(5, 'ffn_gate')")
    terminal.read(b"layer 5 of 28")
    if how.startswith("SIG"):
        os.kill(terminal.pid, getattr(signal, how))
    else:
        os.write(terminal.fd, b"\x03\x03" if how == "ctrl-c" else b"q")
    assert terminal.code() == (0 if how == "q" else 130)
    assert b"\x1b[?1049l" in terminal.out and b"\x1b[?25h" in terminal.out, "screen and cursor come back"
    assert termios.tcgetattr(terminal.fd)[3] == terminal.modes[3], "the terminal's modes come back"
    assert b"Traceback" not in terminal.out


def test_a_dropped_line_ends_the_process():
    terminal = Terminal("stop_at=(5, 'ffn_gate')")
    terminal.read(b"layer 5 of 28")
    os.close(terminal.fd)
    assert terminal.code() == 130


def test_a_terminal_that_takes_no_more_output_gets_its_modes_back():
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    tty.setraw(slave)
    assert termios.tcgetattr(slave) != modes
    restorer(slave, modes)()
    assert termios.tcgetattr(slave) == modes
    os.close(master)
    os.close(slave)


def test_an_internal_error_leaves_the_terminal_as_it_was():
    terminal = Terminal("fail=ZeroDivisionError('a bug of ours')")
    assert terminal.code() == 1, "it is raised again, for the command line to log"
    assert b"\x1b[?1049l" in terminal.out
    assert termios.tcgetattr(terminal.fd)[3] == terminal.modes[3]


def test_under_no_color_not_one_colour_is_written():
    terminal = Terminal(NO_COLOR="1")
    terminal.read(b"looks like the")
    os.write(terminal.fd, b"\r")
    terminal.read(b"why it grew")
    os.write(terminal.fd, b"qq")  # the layer, then the console
    assert terminal.code() == 0
    codes = {code for found in re.findall(rb"\x1b\[([0-9;]*)m", terminal.out) for code in found.split(b";")}
    assert codes <= {b"", b"0", b"1", b"7", b"22", b"27", b"39", b"49"}, codes


def test_the_first_screen_needs_no_heavy_package():
    heavy = ("numpy", "torch", "polars", "gguf", "core.session")
    script = f"import sys, apr_tui.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_textual_still_has_what_its_private_names_were_used_for():
    app = Console(Request())
    assert hasattr(App, "_fatal_error") and hasattr(App, "_print_error_renderables"), "nothing calls the overrides"
    assert (app.failure, app.backlog) == (None, 0)
    wanted = {"_writer_thread", "fileno", "attrs_before"}
    assert wanted <= set(re.findall(r"self\.(\w+)", inspect.getsource(LinuxDriver)))
    thread = WriterThread(io.StringIO())  # not started, so it takes nothing
    app._driver = cast(Any, SimpleNamespace(_writer_thread=thread))
    for n_write in range(1, 5):
        thread.write("x")
        assert (app.backlog, app.is_behind()) == (n_write, n_write > 2)
