"""Records of a difference in words, and of the two tensors that it is about. No patterns: describe_diff.py has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.audit.weights.rounding_slope import Noise
from core.formats.model_file import ModelFile
from core.quant.weight import Weight

TOLERANCE = 2e-3   # relative: what float16 scales leave of an exact pattern
ERROR_TOLERANCE = 2.0         # over the types' error
LOOSEST = 0.7      # of a tolerance: two tensors that have nothing in common are 1.4 apart
NAMED = 3          # runs of rows in a sentence; the rest are counted


class DiffKind(StrEnum):
    """What a difference is. SIZE: nothing fits, so that only its size is told."""

    ABSENT = "absent"
    SHAPE = "shape"
    NOT_FINITE = "not finite"
    ZEROS = "zeros"
    SCALED = "scaled"
    ADDED = "added"
    ROPE_ORDER = "rope order"
    SHIFTED = "shifted"
    REORDERED = "reordered"
    TRANSPOSED = "transposed"
    COUSIN = "cousin"
    ELEMENT = "element"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Description:
    """One difference in words, to stand behind a tensor's name. row, block (of the type's in that row): the first.

    side: A or B where the pattern itself shows which is the outlier; None elsewhere.
    """

    kind: DiffKind
    sentence: str
    row: int | None = None
    block: int | None = None
    side: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of two files, in one shape. heads: head sizes of the model, for the orders of RoPE."""

    a: Weight
    b: Weight
    file_a: ModelFile
    file_b: ModelFile
    noise: Noise
    heads: tuple[int, ...] = ()

    @property
    def tolerance(self) -> float:
        """How far from an exact pattern rounding leaves B, relative."""
        return min(max(ERROR_TOLERANCE * self.noise.error, TOLERANCE), LOOSEST)


def factor_text(factor: float) -> str:
    """A factor in three digits at least."""
    return f"{factor:.2f}" if 0.1 <= abs(factor) < 1000 else f"{factor:.3g}"


def runs_text(axis: str, where: Sequence[int]) -> str:
    """row 5, or rows 0..63, 70 and 4 more runs."""
    runs: list[list[int]] = []
    for i in where:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    parts = [str(a) if a == b else f"{a}..{b}" for a, b in runs[:NAMED]]
    more = f" and {len(runs) - NAMED} more runs" if len(runs) > NAMED else ""
    return f"{axis}{'s' if len(where) > 1 else ''} {', '.join(parts)}{more}"
