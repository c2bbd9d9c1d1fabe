"""Distances between two values of a stage, token by token: relative L2 for pairs, NMSE for replays. No verdicts.

Both take the worst token. Where one side is not finite and the other is not the same, they are infinitely far apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.trace.measures import Difference


def relative_l2(a_TW: Tensor, b_TW: Tensor) -> tuple[float, int]:
    """Return the largest |b - a| / |a| of a token, and that token's row; inf where finite places differ or a is 0."""
    same_bad, gap, size = _gaps(a_TW, b_TW)
    rel = torch.where(gap == 0, 0.0, gap / size)
    rel = torch.where(same_bad, rel, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
    row = int(rel.argmax())
    return float(rel[row]), row


def difference(a_TW: Tensor, b_TW: Tensor, first: int) -> Difference:
    """Measure b against a at the worst token, and name its channel furthest off, the lowest on a tie.

    first: position of row 0.
    """
    rel, row = relative_l2(a_TW, b_TW)
    a, b = a_TW[row].double(), b_TW[row].double()
    far = (b - a).abs()
    far = torch.where(_unlike(a, b), math.inf, far.nan_to_num(nan=0.0, posinf=0.0))
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    norms = float(a.norm() * b.norm())
    cosine = float(a @ b) / norms if norms > 0 else None
    return Difference(rel, cosine, float(far.max()), first + row, int(far.argmax()))


def nmse(truth_TW: Tensor, value_TW: Tensor) -> tuple[float, int, int] | None:
    """Return the largest |value - truth|^2 / |truth|^2 of a token, its row, and its channel furthest off.

    Only tokens whose truth is finite are judged: None where none is.
    """
    judged = torch.isfinite(truth_TW).all(1)
    if not bool(judged.any()):
        return None
    _, gap, size = _gaps(truth_TW, value_TW)
    ratio = torch.where(gap == 0, 0.0, (gap / size).square())
    ratio = torch.where(torch.isfinite(value_TW).all(1), ratio, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
    ratio = torch.where(judged, ratio, -1.0)
    row = int(ratio.argmax())
    far = (value_TW[row].double() - truth_TW[row].double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(ratio[row]), row, int(far.argmax())


def _unlike(a: Tensor, b: Tensor) -> Tensor:
    """Where one side is not finite and the other is not the same: NaN is NaN, and an Inf has its sign."""
    return (a != b) & ~(torch.isfinite(a) & torch.isfinite(b)) & ~(torch.isnan(a) & torch.isnan(b))


def _gaps(a_TW: Tensor, b_TW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each token: whether both have the same NaN and Inf, |b - a| and |a| over the finite places."""
    a, b = a_TW.double(), b_TW.double()
    gap, size = (b - a).norm(dim=1), a.norm(dim=1)
    if bool(torch.isfinite(gap + size).all()):  # nearly always; what is not finite on either side makes gap so
        return torch.ones_like(gap, dtype=torch.bool), gap, size
    good = torch.isfinite(a) & torch.isfinite(b)
    same_bad = ~_unlike(a, b).any(1)
    a, b = torch.where(good, a, 0.0), torch.where(good, b, 0.0)
    return same_bad, (b - a).norm(dim=1), a.norm(dim=1)
