"""Match a bad value with a known fault: recompute it under each, and take the nearest. It is no verdict."""

from __future__ import annotations

import math

from torch import Tensor

from core.faults.stage_inputs import StageInputs
from core.faults.value_faults import VALUE_FAULTS
from core.proof.distance import relative_l2

CLOSE = 10.0  # times the distance that the compute itself costs
LEAST_DISTANCE = 1e-5  # float32 against float64 through one stage
TELLING = 0.1  # of the distance to the right value: a guess must be far better than no bug at all


def match_known_fault(inputs: StageInputs, source: Tensor, floor_nmse: float) -> str | None:
    """Return the description of the fault that makes this value; None where none does.

    inputs: the stage in float64, with its right value and the source's own inputs. source: the value found there.
    """
    right, _ = relative_l2(inputs.value, source)
    limit = min(CLOSE * max(math.sqrt(floor_nmse), LEAST_DISTANCE), TELLING * right)
    best: tuple[float, str] | None = None
    for row in VALUE_FAULTS.values():
        if row.stands(inputs.model, inputs.layer, inputs.stage):
            distance, _ = relative_l2(row.apply(inputs), source)
            if distance <= limit and (best is None or distance < best[0]):
                best = (distance, row.description)
    return best[1] if best else None
