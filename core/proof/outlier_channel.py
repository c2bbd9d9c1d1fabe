"""Find the outlier channel that dominates a block's scale where activations are rounded to 8 bits. It judges no side.

A block of 256 (Q8_K) shares one scale: with a channel at 26 x rms, a value of rms size keeps 127 / 26, about 5, levels.
"""

from __future__ import annotations

import math

from core.model.stages import place_text, stage_named, stages_of
from core.trace.record import Trace
from core.trace.stats import TokenStats

OUTLIER_MULTIPLE = 16.0  # times the token's rms: then a value of rms size has 8 levels left of 127
# what products read
PRODUCT_INPUTS = frozenset(name for stage in stages_of("linear") for name in stage_named(stage).inputs)


def find_outlier(a: Trace, b: Trace) -> str | None:
    """Say which channel, in multiples of its token's rms, dominates its block's scale; None where none does."""
    worst: tuple[float, str] | None = None
    for trace in (a, b):
        for place, cell in trace.cells.items():
            if place[1] not in PRODUCT_INPUTS or not isinstance(cell, TokenStats):
                continue
            for channel, token, value in cell.top:
                rms = math.sqrt(float(cell.rows["sumsq"][token - cell.first]) / cell.width)
                times = abs(value) / rms if rms else 0.0
                if times >= OUTLIER_MULTIPLE and (worst is None or times > worst[0]):
                    worst = (times, f"activation block crush at channel {channel}: in {place_text(place)} "
                                    f"token {token} has it at {times:.0f} x rms, so that the 8-bit scale of its "
                                    "block leaves the others few levels")
    return worst[1] if worst else None
