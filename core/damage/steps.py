"""How far a stored weight may be from the one it was rounded from: the variance of its rounding, by its type.

Evenly spaced types: step^2 / 12, the step being that of the weight's own (sub-)block, read as the type's own decoder
reads it: the decoded difference of quants 1 and quants 0 under the block's scales. Others: the type's measured relative
rounding error (core.quant.types) times the block's mean square.
Shape letters: R rows, C columns, B = C / GROUP groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from core.quant.dequantize import decode_rows
from core.quant.types import QUANTS, row_bytes
from core.quant.weight import Weight

GROUP = 16  # weights that share a variance: no type has a smaller sub-block


@dataclass(frozen=True, slots=True)
class Spacing:
    """Where the quants of a block stand: bytes whose value is one step above ones, and bytes that are zero in both."""

    quants: slice
    one: int
    zero: slice | None = None


SPACINGS = {
    "Q4_0": Spacing(slice(2, 18), 0x11), "Q4_1": Spacing(slice(4, 20), 0x11),
    "Q5_0": Spacing(slice(6, 22), 0x11, slice(2, 6)), "Q5_1": Spacing(slice(8, 24), 0x11, slice(4, 8)),
    "Q8_0": Spacing(slice(2, 34), 0x01),
    "Q2_K": Spacing(slice(16, 80), 0x55), "Q3_K": Spacing(slice(32, 96), 0x55, slice(0, 32)),
    "Q4_K": Spacing(slice(16, 144), 0x11), "Q5_K": Spacing(slice(48, 176), 0x11, slice(16, 48)),
    "Q6_K": Spacing(slice(0, 128), 0x11, slice(128, 192)),
}


def rounding_variance(weight: Weight, start: int, stop: int) -> Tensor:
    """The variance of each group of GROUP weights in rows start to stop: [R, B], float32; 0 for a float32 weight.

    A type whose rounding nobody has measured is taken as exact.
    """
    spacing = SPACINGS.get(weight.quant)
    if spacing is not None:
        zero, one = (decode_rows(_with_quants(weight, spacing, start, stop, q), 0, stop - start)
                     for q in (0, spacing.one))
        return ((one - zero) ** 2)[:, ::GROUP] / 12
    error = QUANTS[weight.quant].error or 0.0
    w_RC = decode_rows(weight, start, stop)
    pad = -w_RC.shape[1] % GROUP
    groups = torch.nn.functional.pad(w_RC, (0, pad)).view(len(w_RC), -1, GROUP)
    return groups.square().mean(-1) * error**2


def _with_quants(weight: Weight, spacing: Spacing, start: int, stop: int, quant: int) -> Weight:
    """Rows of the weight with every quant set to one value, its scales as they are."""
    kind = QUANTS[weight.quant]
    size = row_bytes(kind, weight.shape[-1])
    blocks = np.array(weight.data[start * size:stop * size]).reshape(-1, kind.block_bytes)
    if spacing.zero is not None:
        blocks[:, spacing.zero] = 0
    blocks[:, spacing.quants] = quant
    return replace(weight, shape=(stop - start, weight.shape[-1]), data=blocks.reshape(-1))
