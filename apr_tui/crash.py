"""Write the log of an internal error into the user's state folder, and end a process whose terminal is gone. No screen here."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import traceback
from pathlib import Path

SIGNAL_EXIT = 130
CRASH_EXIT = 70
PATIENCE_S = 4.0  # a writer blocked on a dead line cannot be waited for


def write_log(error: BaseException) -> Path:
    """Write the traceback to a new file, readable by its owner, and return its path."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    text = "".join(traceback.format_exception(error))
    for folder in (Path(base) / "apr-tui", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".log", time.strftime("crash-%Y%m%d-%H%M%S-"), folder)
        except OSError:
            continue
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)
        return Path(name)
    return Path(os.devnull)


def end_soon(code: int, seconds: float = PATIENCE_S) -> threading.Timer:
    """End the process in a few seconds whatever happens; cancel the timer where it ended by itself."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer
