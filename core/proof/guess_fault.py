"""Guess what a bad value is: recompute it as each known bug would leave it, and see which it is. It is no verdict."""

from __future__ import annotations

import math

from torch import Tensor

from core.faults.stage_inputs import Scene
from core.faults.value_faults import PLANTS
from core.proof.distance import relative_l2

CLOSE = 10.0  # times the distance that the compute itself costs
LEAST_DISTANCE = 1e-5  # float32 against float64 through one stage
TELLING = 0.1  # of the distance to the right value: a guess must be far better than no bug at all


def guess(scene: Scene, source: Tensor, floor_nmse: float) -> str | None:
    """Return what is said of the bug that leaves this value, None where none does.

    scene: the stage in float64, with its right value and the source's own inputs. source: the value found there.
    """
    right, _ = relative_l2(scene.value, source)
    limit = min(CLOSE * max(math.sqrt(floor_nmse), LEAST_DISTANCE), TELLING * right)
    best: tuple[float, str] | None = None
    for row in PLANTS.values():
        if row.stands(scene.model, scene.layer, scene.stage):
            distance, _ = relative_l2(row.leaves(scene), source)
            if distance <= limit and (best is None or distance < best[0]):
                best = (distance, row.says)
    return best[1] if best else None
