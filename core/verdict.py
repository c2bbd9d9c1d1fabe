"""Records of a comparison of two traces and its verdict. The rules that reach it: compare.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.stages import Place
from core.trace import Trace

VERDICTS = {
    "AGREE": "no cell differs, and no hint names a spike",
    "H1": "no cell differs, and both sides show the same spike: it is the model",
    "H2": "a cell differs and no declared choice explains it: a bug",
    "H3": "a cell differs, and a declared numeric choice explains it",
    "INCONCLUSIVE": "the difference is near the noise floor, or one side has statistics only",
    "NOT_COMPARABLE": "the numbers were not taken alike",
}
EXIT_CODES = {"AGREE": 0, "H1": 0, "H3": 0, "H2": 1, "NOT_COMPARABLE": 4, "INCONCLUSIVE": 5}


@dataclass(frozen=True, slots=True)
class Difference:
    """B against A at one place, each number of the worst token (None: not measured, as with statistics only).

    rel_l2 = |b - a| / |a|; local: B's operation on A's inputs against A; inherited: B against B's operation on A's inputs.
    floor: the same distance between A and A with rounding-size noise. state: same, unclear, differs, absent.
    """

    rel_l2: float | None
    cosine: float | None
    max_abs: float | None
    token: int | None
    channel: int | None
    inherited: float | None = None
    local: float | None = None
    floor: float | None = None
    state: str = "same"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on B against A. first is None where no cell differs; side is A, B or None (not decided)."""

    verdict: str
    reasons: tuple[str, ...]
    a: Trace
    b: Trace
    scope: str
    first: Place | None = None
    token: int | None = None
    channel: int | None = None
    side: str | None = None
    measured: float | None = None
    floor: float | None = None
    cells: Mapping[Place, Difference] = field(default_factory=dict, repr=False)

    @property
    def multiple(self) -> float | None:
        """How many floors the first difference is."""
        return self.measured / self.floor if self.measured is not None and self.floor else None
