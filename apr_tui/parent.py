"""Let a child do the work where nothing guards mapped files: its parent turns SIGBUS into a sentence and exit 3.

Reading a mapped file that another program has cut kills a process at once. The kernels' library catches that where it
is compiled; elsewhere (no compiler, or before the first build) the parent outlives it and gives the terminal back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Callable
from typing import NoReturn

from apr_tui.shutdown import restorer
from core.system.child import fork
from core.system.mapped_file import NO_MMAP, cut_error

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BY_KILL = (0, -1, -6)  # si_code of kill, sigqueue, tkill (asm-generic/siginfo.h); a terminal's own reach the child too
# leave the other screen, show the cursor, no mouse, no pasting marks, no styles
PLAIN_SCREEN = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[<u\x1b[0m"


def go_on_in_child() -> None:
    """Return in a child; the parent waits for it and ends as it ended. Where that cannot be, return as it is."""
    if sys.platform != "linux" or os.environ.get(NO_MMAP):
        return
    modes = None
    with contextlib.suppress(OSError, termios.error):
        modes = termios.tcgetattr(0)
    watched = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = 0
    with contextlib.suppress(OSError):
        child = fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _end_as(_wait(child, watched), restorer(0, modes))


def _wait(child: int, watched: set[signal.Signals]) -> int:
    """The child's wait status; what is sent to this process alone is sent on."""
    while True:
        said = signal.sigwaitinfo(watched)
        if said.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
        elif said.si_code in BY_KILL:
            os.kill(child, said.si_signo)


def _end_as(status: int, restore: Callable[[], None]) -> NoReturn:
    """End as the child did; where the bytes of a mapped file went, with the terminal restored and the sentence."""
    if not os.WIFSIGNALED(status):
        os._exit(os.waitstatus_to_exitcode(status))
    number = os.WTERMSIG(status)
    restore()
    if number == signal.SIGBUS:
        error = cut_error()
        with contextlib.suppress(OSError):
            os.write(2, f"{PLAIN_SCREEN if os.isatty(2) else ''}apr-tui: {error}\n".encode())
        os._exit(error.code)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)
