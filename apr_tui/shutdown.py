"""End a process whose terminal may be gone. The log of an internal error is the command line's."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

SIGNAL_EXIT = 130
PATIENCE_S = 4.0  # a writer blocked on a closed terminal never returns
TRAIN_PATIENCE_S = 60.0  # a training step in flight and its checkpoint can


def on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Have the signals that end a command handled so, where this system has them and this thread may say so."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), handler)


def on_cut_files(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Have a mapped file that somebody cuts handled so, in the main thread; say whether this machine guards it now."""
    from core.kernels.cpu.build import guard_early
    from core.system.mapped_file import CUT_SIGNAL

    if CUT_SIGNAL is None or threading.current_thread() is not threading.main_thread():
        return False
    signal.signal(CUT_SIGNAL, handler)
    return guard_early()


def end_soon(code: int, restore: Callable[[], None], seconds: float = PATIENCE_S) -> None:
    """End the process in a few seconds whatever happens, the terminal's modes restored; it may well end before."""

    def end() -> None:
        restore()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def restorer(fd: int | None, modes: Any) -> Callable[[], None]:  # noqa: ANN401 (what termios.tcgetattr returns)
    """Return what gives a terminal back its modes without writing to it; what does nothing where either is None."""

    def restore() -> None:
        if fd is not None and modes is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(fd, termios.TCSANOW, modes)

    return restore


def end_now(code: int) -> NoReturn:
    """End the process without waiting for its threads; temporary files go first."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_terminal() -> bool:
    """Say whether somebody is still at the other end."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) >= 0
    except OSError:
        return False
