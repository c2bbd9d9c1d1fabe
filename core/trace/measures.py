"""Records of one measured place, B against A or a stage against float64, and the tolerances they are held to.

Units: MIN_REL_L2_FLOOR is a relative L2, |b - a| / |a|, the least floor of a Difference; MIN_NMSE_FLOOR is an NMSE, its
square, the least floor of a LocalError; BAD_FACTOR multiplies an NMSE, SAME and CLEAR a relative L2.
What they add up to is proof/verdict.py's. No array library is needed to read them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

NOISE_MULTIPLE, PROOF_MULTIPLE = 3.0, 10.0  # multiples of a cell's floor: up to SAME it is noise, above CLEAR it is not
BAD_FACTOR = 100.0  # in NMSE, so 10 in size: another order of summation costs up to 4
MIN_NMSE_FLOOR = 1e-13  # float32 rounds at 2^-24, squared 4e-15, and a sum of thousands loses some of it
MIN_REL_L2_FLOOR = 1e-6  # rounding of float32 (1.2e-7) through one stage's sums of thousands of products


class SideName(StrEnum):
    """The two sides of a comparison; a distance is of B against A."""

    A = "A"
    B = "B"


class State(StrEnum):
    """What a cell's distance is by the multiple of its floor; absent: one side has no such value."""

    SAME = "same"
    UNCLEAR = "unclear"
    DIFFERS = "differs"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """B against A at one place, each number of the worst token (None: not measured, as with statistics only).

    rel_l2 = |b - a| / |a|; local: B's operation on A's inputs against A; inherited: B against B's operation on A's
    inputs.
    floor: the same distance between A and A with rounding-size noise.
    """

    rel_l2: float | None
    cosine: float | None
    max_abs: float | None
    token: int | None
    channel: int | None
    inherited: float | None = None
    local: float | None = None
    floor: float | None = None
    state: State = State.SAME


@dataclass(frozen=True, slots=True)
class LocalError:
    """How far a stage is from float64 on its own inputs: NMSE of the worst token, and the floor of its compute.

    span: stages before it that the source lacks, judged with it in one piece. declared: relative L2 from what the
    declared compute makes of the same inputs; None for a live source, where it is the run itself.
    """

    nmse: float
    floor: float
    token: int
    channel: int
    guess: str | None = None  # what is said of the known bug that leaves such a value
    span: tuple[str, ...] = ()
    declared: float | None = None
    ties: tuple[str, ...] = ()    # tokens whose experts are others of the same score: judged as a set
    inputs: tuple[str, ...] = ()  # the stages that it reads in its layer; () where that is not said

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise ratio: -10 log10(NMSE)."""
        return math.inf if self.nmse == 0 else -10 * math.log10(self.nmse)

    @property
    def span_text(self) -> str:
        """Say which stages were judged with this one in one piece."""
        return f"judged in one piece with {', '.join(self.span)}, which the source lacks"

    @property
    def limit(self) -> float:
        """The floor that counts, never under MIN_NMSE_FLOOR."""
        return max(self.floor, MIN_NMSE_FLOOR)

    @property
    def is_bad(self) -> bool:
        """Whether the declared compute does not explain it."""
        return self.nmse > BAD_FACTOR * self.limit
