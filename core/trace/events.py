"""Records of what a run tells while it runs, one for each kind of event, and the call that takes them.

No array library is needed to read them: a screen matches them before numpy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from core.model.stages import Place
from core.system.progress import Phase, Reached
from core.trace.measures import LocalError, SideName
from core.trace.record import Token

if TYPE_CHECKING:
    from core.trace.stats import Cell


@dataclass(frozen=True, slots=True)
class Start:
    """The tokens are known and the run begins. n_layer: None where another engine's model says it only later."""

    n_layer: int | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class CellMeasured:
    """A stage was measured. side: of a comparison; None where one source is run."""

    place: Place
    cell: Cell
    side: SideName | None = None


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """One token of the continuation, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class StageJudged:
    """A check has judged a stage against float64."""

    place: Place
    error: LocalError


@dataclass(frozen=True, slots=True)
class FilesCompared:
    """What the files of a pair differ in, in words; known before any forward."""

    sentences: tuple[str, ...]


Event: TypeAlias = Phase | Reached | Start | CellMeasured | TokenGenerated | StageJudged | FilesCompared
Emit = Callable[[Event], None]


def no_emit(event: Event) -> None:
    """Drop the event."""
