"""Say in words what B's tensor is to A's: only in A, 8.00 x, zeros, rows exchanged, another layer's. No verdict.

Patterns are tried from the definite to the vague; sizes are told only where nothing fits.
"""

from __future__ import annotations

import math

import torch

from core.audit.weights.describe_moves import moved
from core.audit.weights.describe_spots import few_elements, few_groups
from core.audit.weights.description import (
    ERROR_TOLERANCE,
    TOLERANCE,
    Description,
    DiffKind,
    Pair,
    factor_text,
    runs_text,
)
from core.audit.weights.rounding_slope import MOST_SLANT, Survey
from core.audit.weights.survey import Sums, read_rows
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import IsCancelled


def describe_absent(in_a: bool) -> Description:
    """A tensor that one file lacks."""
    return Description(DiffKind.ABSENT, f"only in {'A' if in_a else 'B'}")


def describe_shape(a: Weight, b: Weight) -> Description:
    """Two shapes."""
    turned = "; transposed?" if a.shape == b.shape[::-1] else ""
    return Description(DiffKind.SHAPE, f"is {list(a.shape)} in A and {list(b.shape)} in B{turned}")


def describe(pair: Pair, found: Survey, cancelled: IsCancelled) -> Description:
    """Say what the difference that a survey found is."""
    if found.unlike:
        return _not_finite(pair, found)
    odd = _odd_rows(pair, found)
    return (_zeros(found) or _whole(pair, found) or few_groups(pair, found) or _rows_scaled(pair, found, odd)
            or moved(pair, found, odd, cancelled) or _columns_scaled(pair, found) or few_elements(pair, found, odd)
            or _size(found))


def _size(found: Survey) -> Description:
    row, worst = found.worst_row
    where = f", most in row {row}" if len(found.rows.aa) > 1 and math.isfinite(worst) else ""
    size = (f"differs by {found.relative:.2g} relative" if math.isfinite(found.relative)
            else f"is 0 in A, of size {math.sqrt(float(found.rows.bb.sum())):.2g} in B")
    return Description(DiffKind.SIZE, size + where, row)


def _not_finite(pair: Pair, found: Survey) -> Description:
    row = found.unlike[0]
    rows = runs_text("row", found.unlike)
    x, y = (read_rows(w, row, row + 1)[0] for w in (pair.a, pair.b))
    for side, other, values, weight in (("A", y, x, pair.a), ("B", x, y, pair.b)):
        bad = (~torch.isfinite(values) & torch.isfinite(other)).nonzero()[:, 0]
        if len(bad):
            what = "NaN" if bool(values[bad].isnan().any()) else "Inf"
            size, column = QUANTS[weight.quant].block, int(bad[0])
            block = column // size if size > 1 else None
            place = f"block {block}" if block is not None else f"column {column}"
            return Description(DiffKind.NOT_FINITE, f"{rows} of {side}: {what} in {len(bad)} values from {place} on",
                               row, block, side)
    return Description(DiffKind.NOT_FINITE, f"{rows}: NaN on one side, Inf on the other", row)


def _zeros(found: Survey) -> Description | None:
    """Rows, columns or all of one side that are 0 where the other's are not."""
    for side, mine, other in (("B", "bb", "aa"), ("A", "aa", "bb")):
        for axis, sums in (("row", found.rows), ("column", found.columns)):
            zero = (getattr(sums, mine) == 0) & (getattr(sums, other) > 0)
            where = zero.nonzero()[:, 0].tolist()
            if not where:
                continue
            if bool((getattr(sums, mine) == 0).all()):
                return Description(DiffKind.ZEROS, f"all zeros in {side}", side=side)
            if len(zero) == 1 or (axis == "column" and len(found.rows.aa) == 1):
                return _zero_elements(side, where)
            tail = f": from row {where[0]} on" if axis == "row" and len(where) > 1 and where == list(
                range(where[0], len(zero))) else ""
            return Description(DiffKind.ZEROS, f"{runs_text(axis, where)} of {side} {_be(where)} zeros{tail}",
                               where[0] if axis == "row" else None, side=side)
    return None


def _be(where: list[int]) -> str:
    return "is" if len(where) == 1 else "are"


def _zero_elements(side: str, where: list[int]) -> Description:
    return Description(DiffKind.ZEROS, f"{runs_text('element', where)} of {side} {_be(where)} zeros", side=side)


def _whole(pair: Pair, found: Survey) -> Description | None:
    """Every element times a factor, or plus a constant."""
    n, error, room = len(found.rows.aa) * len(found.columns.aa), pair.noise.error, pair.tolerance**2
    aa, ag, gg, g = (float(v.sum()) for v in (found.rows.aa, found.rows.ag, found.rows.gg, found.rows.g))
    if aa == 0 or n < 2:
        return None
    factor = 1 + ag / aa
    beside, rest = max(0.0, gg - g * g / n), max(0.0, gg - ag * ag / aa)  # of a constant, of a factor
    added = abs(g) / n > 0.25 * error * math.sqrt(aa / n) and beside <= room * (aa + g * g / n)
    if added and beside < min(rest, 0.5 * gg):
        return Description(DiffKind.ADDED, f"B = A {'+' if g > 0 else '-'} {abs(g) / n:.4g} in every element")
    scaled = abs(factor - 1) > (MOST_SLANT if error else 1e-6) and rest <= room * factor**2 * aa
    if scaled and rest < 0.5 * gg and abs(found.slope + 1 - factor) < 0.1 * abs(factor):
        return Description(DiffKind.SCALED, f"B = {factor_text(factor)} x A")
    return None


def _rows_scaled(pair: Pair, found: Survey, odd: list[int]) -> Description | None:
    """The odd rows, each times a factor."""
    if len(found.rows.aa) < 2 or len(odd) > len(found.rows.aa) // 2:
        return None
    times = _factors(pair, found.rows, odd)
    return Description(DiffKind.SCALED, f"{runs_text('row', odd)}: {times}", odd[0]) if times else None


def _columns_scaled(pair: Pair, found: Survey) -> Description | None:
    """Columns that differ, each times a factor."""
    columns = found.columns
    far = columns.gg > (1.5 * ERROR_TOLERANCE * pair.noise.error) ** 2 * columns.aa.clamp(
        min=1e-4 * float(columns.aa.mean())
    )
    odd = [int(i) for i in far.nonzero()[:, 0]]
    if len(found.rows.aa) < 2 or len(odd) > len(columns.aa) // 2:
        return None
    times = _factors(pair, columns, odd)
    return Description(DiffKind.SCALED, f"{runs_text('column', odd)}: {times}") if times else None


def _factors(pair: Pair, sums: Sums, odd: list[int]) -> str | None:
    """What the odd lines of an axis are multiplied by; None where they are something else, or none is odd."""
    if not odd:
        return None
    at = torch.tensor(odd)
    aa, rest, factor = sums.aa[at], sums.rest[at], 1 + sums.slope[at]
    if bool((rest > (pair.tolerance * factor).square() * aa).any()):
        return None
    middle = float(factor.median())
    if bool(((factor - middle).abs() < max(pair.noise.error, TOLERANCE) * abs(middle)).all()):
        return f"B = {factor_text(middle)} x A"
    return f"B = {factor_text(float(factor.min()))} .. {factor_text(float(factor.max()))} x A"


def _odd_rows(pair: Pair, found: Survey) -> list[int]:
    """Rows further off than their rounding."""
    rows = found.rows
    if not pair.noise.error:
        return [int(i) for i in (rows.gg > 0).nonzero()[:, 0]]
    far = rows.gg > (1.5 * ERROR_TOLERANCE * pair.noise.error) ** 2 * rows.aa.clamp(min=1e-4 * float(rows.aa.mean()))
    return sorted({*(int(i) for i in far.nonzero()[:, 0]), *found.odd_rows})
