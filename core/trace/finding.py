"""Record of what a run shows by itself (a hint) or a check has proved (a proof). The rules of hints: hints.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from core.model.stages import Place


class FindingKind(StrEnum):
    """The rule that a finding comes from."""

    NAN = "nan"
    RATIO = "ratio"
    PRECURSOR = "precursor"
    DOWNSTREAM = "downstream"
    AFTER = "after"
    HIDDEN = "hidden"
    OVERFLOW = "overflow"
    STEP = "step"
    FALL = "fall"
    MASSIVE = "massive"
    Z = "z"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one place, with the numbers behind it.

    strength: hint or proof.
    measured and baseline: the two sides of the rule (a ratio's are the multiple and the std of the layer before).
    """

    kind: FindingKind
    strength: str
    layer: int | None
    stage: str
    scope: str
    token: int | None
    channel: int | None
    measured: float | None
    baseline: float | None
    rule: str
    sentence: str

    @property
    def place(self) -> Place:
        """Where it is, as (layer, stage)."""
        return (self.layer, self.stage)
