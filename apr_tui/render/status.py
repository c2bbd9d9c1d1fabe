"""Facts about this process for the screen: memory, time, what went wrong. Not the trace's."""

from __future__ import annotations

import os
import resource
import sys

from apr_tui.style import escape_untrusted
from core.system.errors import AprError


def memory_text() -> str:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            size = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = peak if sys.platform == "darwin" else peak * 1024
    mib = size / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def seconds_text(seconds: float | None, is_running: bool = False) -> str:
    """A duration in four to six columns, whole seconds while it runs; blank where there is none."""
    if seconds is None:
        return ""
    if is_running and seconds < 100:
        return f"{int(seconds)} s"
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def export_note(result: object, error: Exception | None) -> tuple[str, str]:
    """How an export ended, as a message: where it stands, or why not."""
    return (f"written: {escape_untrusted(str(result))}", "a") if error is None else error_note(error)


def witness_span(word: bool | None) -> tuple[str, str]:
    """What the control run showed, for the end of a line; nothing where there was none."""
    return {None: ("", "quiet"), True: ("traced = untraced ", "quiet"),
            False: ("X traced differs from untraced ", "bad")}[word]


def error_note(error: Exception) -> tuple[str, str]:
    """An error as a message under the grid."""
    assert isinstance(error, AprError)
    return f"X {escape_untrusted(str(error))}", "bad"
