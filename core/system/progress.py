"""Record of what a run is doing now, and how long that will take. Others: trace/events.py, train/events.py."""

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


@dataclass(slots=True)
class Pace:
    """How long the rest of a phase of many alike steps takes, by those that are done."""

    first: Phase | None = None
    since: float = 0.0

    def left(self, phase: Phase, now: float) -> float | None:
        """Seconds from now to the end of its last step; None for its first, which nothing is known of yet."""
        if phase.step is None or phase.n_step is None:
            return None
        first = self.first
        if first is None or first.n_step != phase.n_step or (first.step or 0) > phase.step:
            self.first, self.since = phase, now
            return None
        if first.step == phase.step:
            return None
        return (now - self.since) / (phase.step - (first.step or 0)) * (phase.n_step - phase.step + 1)


def age_text(seconds: float | None) -> str:
    """An age in the largest units that matter: 4 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "?"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
