"""Describe a difference of a few spots: a block times a factor, plus a constant, zeros; single weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from core.audit.weights.description import NAMED, Description, DiffKind, Pair, factor_text
from core.audit.weights.rounding_slope import Survey
from core.audit.weights.survey import GROUP, read_rows
from core.quant.types import QUANTS


def few_groups(pair: Pair, found: Survey) -> Description | None:
    """A run of groups in one row, or in a few, times a factor, plus a constant, or zeros."""
    groups = _changed_groups(pair, found)
    rows = sorted({i for i, _ in groups})
    if not groups or len(rows) > NAMED or len(groups) * GROUP >= len(rows) * len(found.columns.aa) * 0.9:
        return None
    row = rows[0]
    here = [j for i, j in groups if i == row]
    stop = next((k for k in range(1, len(here)) if here[k] != here[k - 1] + 1), len(here))
    columns = slice(here[0] * GROUP, min((here[stop - 1] + 1) * GROUP, len(found.columns.aa)))
    x, y = (read_rows(w, row, row + 1)[0, columns].double() for w in (pair.a, pair.b))
    differ = (x != y).nonzero()[:, 0]
    if not len(differ):  # all but them has changed
        return None
    if not pair.noise.error or pair.noise.same_type:
        columns = slice(columns.start + int(differ[0]), columns.start + int(differ[-1]) + 1)
        x, y = x[differ[0]:differ[-1] + 1], y[differ[0]:differ[-1] + 1]
    what = _line_text(x, y, pair.tolerance)
    if what is None:
        return None
    block = QUANTS[pair.b.quant].block
    at = f"block {columns.start // block} (columns {columns.start}..{columns.stop - 1})" if block > 1 else (
        f"columns {columns.start}..{columns.stop - 1}")
    kind, text = what
    more = f"; and {len(rows) - 1} more rows" if len(rows) > 1 else ""
    side = None if kind is not DiffKind.ZEROS else "A" if not bool(x.any()) else "B"
    return Description(kind, f"row {row}, {at}: {text}{more}", row, columns.start // block if block > 1 else None, side)


def _changed_groups(pair: Pair, found: Survey) -> Sequence[tuple[int, int]]:
    """The odd groups; of a tensor that is else as it was, all that changed."""
    changed = (found.rows.gg > 0).nonzero()[:, 0]
    if len(changed) > NAMED or not (pair.noise.same_type or not pair.noise.error):
        return found.odd_groups
    groups = []
    for row in (int(i) for i in changed):
        x, y = (read_rows(w, row, row + 1)[0] for w in (pair.a, pair.b))
        groups += [(row, j) for j in sorted({int(c) // GROUP for c in (x != y).nonzero()[:, 0]})]
    return groups


def _line_text(x: Tensor, y: Tensor, tolerance: float) -> tuple[DiffKind, str] | None:
    """y as a factor of x, as a line, or as zeros; None where no line fits."""
    if len(x) < 4:
        return None
    if bool(x.any()) != bool(y.any()):
        return DiffKind.ZEROS, f"zeros in {'A' if bool(y.any()) else 'B'}"
    size, factor = float(x.square().sum()), float((x * y).sum() / x.square().sum().clamp(min=1e-300))
    if float((y - factor * x).square().sum()) <= (tolerance * factor) ** 2 * size and factor:
        sign = " (its sign is turned)" if abs(factor + 1) < 0.1 else ""
        return DiffKind.SCALED, f"B = {factor_text(factor)} x A{sign}"
    dx, dy = x - x.mean(), y - y.mean()
    spread = float(dx.square().sum())
    if not spread:
        return None
    factor = float((dx * dy).sum()) / spread
    if float((dy - factor * dx).square().sum()) > (tolerance * factor) ** 2 * spread or not factor:
        return None
    constant = float(y.mean() - factor * x.mean())
    if abs(factor - 1) < max(tolerance, 0.01):
        return DiffKind.ADDED, f"B = A {'+' if constant > 0 else '-'} {abs(constant):.4g}"
    return DiffKind.SCALED, f"its scale is x {factor_text(factor)}"


def few_elements(pair: Pair, found: Survey, odd: Sequence[int]) -> Description | None:
    """Single weights that differ, in a row or two."""
    places = list(_elements(pair, [i for i in odd if found.rows.gg[i] > 0][:NAMED])) if len(odd) <= NAMED else []
    if not places or len(places) > NAMED:
        return None
    row, column, x, y = places[0]
    more = f"; and {len(places) - 1} more" if len(places) > 1 else ""
    place = f"row {row}, column {column}" if len(found.rows.aa) > 1 else f"element {column}"
    return Description(DiffKind.ELEMENT, f"{place} is {x:.4g} in A and {y:.4g} in B{more}", row)


def _elements(pair: Pair, rows: Sequence[int]) -> Iterator[tuple[int, int, float, float]]:
    for row in rows:
        x, y = (read_rows(w, row, row + 1)[0] for w in (pair.a, pair.b))
        far = (y - x).abs() > (3 * pair.noise.error) * x.abs().amax()
        yield from ((row, int(c), float(x[c]), float(y[c])) for c in far.nonzero()[:, 0])
