"""Record of what a run is doing now, told while it runs. What else a run tells: trace/events.py, train/events.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """What is being done from now on, in words for a person. step of n_step, where it is one of several alike."""

    text: str
    step: int | None = None
    n_step: int | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a phase that measures no cell has come: the layer that its forward has ended."""

    layer: int
