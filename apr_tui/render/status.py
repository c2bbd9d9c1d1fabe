"""Facts about this process for the screen: memory, time, what went wrong. Not the trace's."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING

from apr_tui.style import escape_untrusted
from core.system.errors import AprError

if TYPE_CHECKING:
    from apr_tui.style import Span
    from apr_tui.workers.run import Frame

LEAST_SECONDS, LEAST_SHARE = 1.0, 0.1  # of a step, before its time says anything


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


def step_spans(frame: Frame, seconds: float) -> list[Span]:
    """Which of several steps runs, the layer that it is at, about how long all may take; seconds: since it began."""
    assert frame.step is not None
    at, of = frame.step
    text = f"step {at} of {of}"
    if frame.reached is not None and frame.n_layer:
        done = frame.reached + 1
        text += f", layer {done} of {frame.n_layer}"
        share = done / frame.n_layer
        if seconds >= LEAST_SECONDS and share >= LEAST_SHARE:
            text += f", about {round(seconds / share * (1 - share + of - at))} s left"
    return [(text, "text"), (f"  {escape_untrusted(frame.phase)}", "quiet")]


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
