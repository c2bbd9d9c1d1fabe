"""Whether two tensors differ by a matrix of low rank, as a merged adapter leaves it, or by the order of values."""

from __future__ import annotations

from math import prod

import torch

from core.audit.weights.rounding_slope import Noise
from core.quant.dequantize import decode_weight
from core.quant.weight import Weight

MOST_RANK = 64
SKETCH = 80
PART = 3           # of the smaller side: a rank above a third of it is not low
CLEAR = 4.0        # times the rounding that the difference must be
SORTED = 1e-3       # relative: beyond it two draws of one kind look alike when they are sorted
LEFT = 1e-4        # of the difference's size, what may stay beside the rank without rounding
SEED = 5
MOST_VALUES = 1 << 28


def has_same_values(a: Weight, b: Weight, noise: Noise) -> bool:
    """Whether B has A's values in other places: sorted they are equal. Only where rounding is finer than SORTED."""
    if noise.error >= SORTED or a.shape != b.shape or prod(a.shape) > MOST_VALUES:
        return False
    x, y = (decode_weight(w).flatten().sort().values.double() for w in (a, b))
    size = float(x.norm())
    return size > 0 and float((y - x).norm()) <= SORTED * size and float(x[-1]) > float(x[0])


def rank_of_difference(a: Weight, b: Weight, noise: Noise) -> int | None:
    """The rank of B - A, where it is low and the difference is more than rounding; None elsewhere."""
    if len(a.shape) != 2 or a.shape[0] * a.shape[1] > MOST_VALUES:
        return None
    x = decode_weight(a)
    gap = decode_weight(b) - x
    if not bool(torch.isfinite(gap).all()):
        return None
    size, rounding = float(gap.norm()), noise.error * float(x.norm())
    most = min(MOST_RANK, min(a.shape) // PART)
    if most < 1 or size <= CLEAR * rounding:
        return None
    probe = torch.randn((a.shape[1], min(SKETCH, min(a.shape))), generator=torch.Generator().manual_seed(SEED))
    sketch = gap @ probe
    if not bool(torch.isfinite(sketch).all()):
        return None
    basis, _ = torch.linalg.qr(sketch)
    values = torch.linalg.svdvals((basis.T @ gap).double())
    least = max(LEFT * size, 2 * rounding / min(a.shape) ** 0.5)
    rank = int((values > least).sum())
    rest = (max(0.0, size**2 - float(values[:rank].square().sum()))) ** 0.5
    return rank if 0 < rank <= most and rest <= max(0.02 * size, 1.5 * rounding) else None
