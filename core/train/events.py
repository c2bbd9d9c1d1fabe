"""Records of what a training run tells while it runs, one for each kind of event, and the call that takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from core.system.outcome import Gate
from core.system.progress import Phase
from core.train.records import Grads, Step, Validation


@dataclass(frozen=True, slots=True)
class Note:
    """What a person should know, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class StepTaken:
    """An optimizer step is in the log. grads: where it has a gradient table."""

    step: Step
    grads: Grads | None = None


@dataclass(frozen=True, slots=True)
class Validated:
    """A validation is in the log."""

    validation: Validation


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint is whole on the disk."""

    path: Path


@dataclass(frozen=True, slots=True)
class GatesJudged:
    """The run has ended and its gates were judged."""

    gates: tuple[Gate, ...]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How the run ended, in words."""

    status: str
    sentence: str


TrainEvent: TypeAlias = Phase | Note | StepTaken | Validated | CheckpointWritten | GatesJudged | RunEnded
TrainEmit = Callable[[TrainEvent], None]


def no_train_emit(event: TrainEvent) -> None:
    """Drop the event."""
