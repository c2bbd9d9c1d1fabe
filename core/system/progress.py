"""Record of what a run is doing now, told while it runs. What else a run tells: trace/events.py, train/events.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """What is being done from now on, in words for a person."""

    text: str
