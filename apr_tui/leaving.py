"""End a process whose terminal may be gone. The log of an internal error is the command line's."""

from __future__ import annotations

import os
import threading

SIGNAL_EXIT = 130
PATIENCE_S = 4.0  # a writer blocked on a dead line cannot be waited for


def end_soon(code: int, seconds: float = PATIENCE_S) -> threading.Timer:
    """End the process in a few seconds whatever happens; cancel the timer where it ended by itself."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer
