"""Record of one thing that a run tells while it runs, and the call that takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.model.stages import Place
from core.trace.measures import LocalError
from core.trace.record import Token
from core.trace.stats import Cell


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a run tells while it runs.

    kind: "phase" (text says what is being done), "start" (n_layer, tokens known), "cell" (a stage was measured),
    "token" (one generated token, in text), "error" (a check has judged a stage). side: A or B in a comparison, else "".
    """

    kind: str
    text: str = ""
    place: Place | None = None
    cell: Cell | None = None
    side: str = ""
    n_layer: int | None = None
    tokens: tuple[Token, ...] = ()
    error: LocalError | None = None


Emit = Callable[[Event], None]


def no_emit(event: Event) -> None:
    """Drop the event."""
