"""Say on stderr how far a command is and what it wrote, and refuse an output that cannot be. stdout is output.py's."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from apr_tui.options import JudgeArguments, OutArguments
from apr_tui.shutdown import on_signals
from core import session
from core.system.limits import MESSAGE_BYTES
from core.system.progress import Pace, Phase, age_text
from core.system.safe_text import safe_lines, safe_text

if TYPE_CHECKING:
    from core.bundle.junit import Reported
    from core.trace.events import Emit, Event

SAID_S = 5  # seconds left that are worth saying


class Quiet(Protocol):
    """Arguments that say whether stderr is wanted."""

    quiet: bool


def progress(arguments: Quiet) -> Emit:
    """Tell on stderr how far a run is: one line that is rewritten on a terminal, phases only elsewhere."""
    if arguments.quiet:
        return lambda event: None
    from core.trace.events import CellMeasured, FilesCompared, Start

    live, n_layer, pace = sys.stderr.isatty(), [0], Pace()

    def emit(event: Event) -> None:
        match event:
            case Start():
                n_layer[0] = event.n_layer or 0
            case FilesCompared(sentences):
                print("".join(f"files: {safe_text(text)}\n" for text in sentences), end="", file=sys.stderr, flush=True)
            case Phase(text):
                left = pace.left(event, time.monotonic())
                told = "" if left is None or left < SAID_S else f", about {age_text(left)} left"
                print(f"{safe_text(text)} ...{told}", file=sys.stderr, flush=True)
            case CellMeasured(place=(layer, "output")) if live:
                done = (layer or 0) + 1
                end = "\n" if done == n_layer[0] else "\r"
                print(f"layer {done} of {n_layer[0]}", end=end, file=sys.stderr, flush=True)

    return emit


def wrote(arguments: Quiet, path: Path | str) -> None:
    """Say what stands on the disk; from here on the work is done, and no signal calls it interrupted."""
    on_signals(lambda number, frame: None)
    say(arguments, f"wrote {safe_text(str(path))}")


def say(arguments: Quiet, message: str) -> None:
    """A message on stderr, unless --quiet."""
    if not arguments.quiet:
        print(safe_lines(message, MESSAGE_BYTES), file=sys.stderr, flush=True)


def check_out(arguments: OutArguments) -> None:
    """Refuse an output that cannot be written before the work, not after it."""
    if arguments.out is not None:
        session.check_out(arguments.out, force=arguments.force)
    check_junit(arguments)


def check_junit(arguments: OutArguments) -> None:
    """Refuse a --junit file that is somebody else's before the work."""
    junit = getattr(arguments, "junit", None)
    if junit is not None:
        from core.bundle.junit import validate_junit

        validate_junit(junit, arguments.force)


def wrote_junit(arguments: JudgeArguments, judged: Sequence[Reported]) -> None:
    """Write --junit where it was asked for, and say so."""
    if arguments.junit is not None:
        from core.bundle.junit import write_junit

        write_junit(arguments.junit, judged)
        wrote(arguments, arguments.junit)
