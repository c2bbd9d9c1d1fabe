"""Record of what a run shows by itself (a hint) or a check has proved (a proof). The rules of hints: hints.py.

And the marks of a grid's cell, with the multiples of the layer before that give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from core.model.stages import Place


class FindingKind(StrEnum):
    """The rule that a finding comes from."""

    NAN = "nan"
    RATIO = "ratio"            # a spike
    PRECURSOR = "precursor"    # a rise before it in its layer
    DOWNSTREAM = "downstream"  # a spike that follows from it
    AFTER = "after"            # a spike that comes after it
    MASSIVE = "massive"
    HIDDEN = "hidden"          # a spike of one position that fades at scope all
    OVERFLOW = "overflow"      # of float16
    STEP = "step"              # far above a low layer before, and usual for its column
    FALL = "fall"
    Z = "z"


# marks
OK, WATCH, BAD, ABSENT, UNKNOWN = ".", "!", "X", "-", "?"
WATCH_RATIO = 3.0  # from here to the threshold: a precursor or a watch mark
UNUSUAL = 3.0  # over its column, from here on: a spike, and not a step up from a low layer
FALL_RATIO = 0.1
# of a finding; any other kind: watch
MARK_OF_KIND = dict.fromkeys(
    (FindingKind.NAN, FindingKind.RATIO, FindingKind.DOWNSTREAM, FindingKind.AFTER), BAD)


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
