"""Compare where a side is saved and cannot be run again: by its values where both have them, else by statistics.

No weights are at hand, so that no floor is measured and no side is found wrong; the reasons say so.
"""

from __future__ import annotations

import math
from dataclasses import replace

from core.model.stages import GRID_STAGES, Place, place_order, place_text
from core.trace.measures import (
    MIN_REL_L2_FLOOR,
    Difference,
    State,
)
from core.trace.record import Trace
from core.trace.stats import Stats

HALF = 0.5  # of the last printed decimal
UNMEASURED = 10.0  # times the least floor or the compute's unit: what rounding may grow to through the layers
# what may explain a difference of two saved runs -> where a trace says it; rope base and eps are in arch
CHOICES = {
    "engine": ("facts", "engine"), "compute": ("facts", "compute"), "device": ("facts", "device"),
    "kernel": ("facts", "kernel"), "weight types": ("origin", "weight_types"),
}


def value_cells(a: Trace, b: Trace, scope: str) -> dict[Place, Difference]:
    """Measure B against A where both kept values; a grid cell that one lacks is absent. {} where a side has none."""
    import torch

    from core.proof.distance import difference
    from core.proof.measure_pair import classify, scope_rows
    from core.quant.activations import COMPUTES

    if not a.values or not b.values:
        return {}
    units = [COMPUTES[t.facts.compute].unit for t in (a, b) if t.facts.compute in COMPUTES]
    floor = max(UNMEASURED * MIN_REL_L2_FLOOR, *units)
    cells = {}
    for place in sorted(set(a.values) | set(b.values), key=place_order):
        if place not in a.values or place not in b.values:
            if place[1] in GRID_STAGES:
                cells[place] = Difference(None, None, None, None, None, state=State.ABSENT)
            continue
        x, y = (torch.as_tensor(v[place]).float() for v in (a.values, b.values))
        if x.shape != y.shape:
            cells[place] = Difference(None, None, None, None, None, state=State.ABSENT)
            continue
        rows = scope_rows(scope, len(a.tokens), len(x))
        if rows:
            cells[place] = classify(replace(difference(x[rows], y[rows], len(a.tokens) - len(x) + rows[0]),
                                            floor=floor))
    return cells


def differing_stats(a: Trace, b: Trace, scope: str) -> list[str]:
    """List the places whose statistics differ beyond the printed precision; [] where all are equal."""
    room = max(_room(a), _room(b))
    found, n_compared = [], 0
    for place in sorted(set(a.cells) | set(b.cells), key=place_order):
        x, y = (t.cells[place].at(scope) if place in t.cells else None for t in (a, b))
        if x is None or y is None:
            if (x is None) != (y is None) and place[1] in GRID_STAGES:
                found.append(f"{place_text(place)} is absent on side {'A' if x is None else 'B'}")
            continue
        gap = _gap(x, y)
        n_compared += gap is not None
        if gap is not None and not gap <= room:
            found.append(f"{place_text(place)}: std {x.std} in A, {y.std} in B")
    return found if n_compared else [*found, "no cell has a statistic that both sides give"]


def undeclared_alike(a: Trace, b: Trace) -> list[str]:
    """List the choices that two saved runs do not share, or do not say: any of them may explain a difference."""
    found = []
    for name, (where, key) in CHOICES.items():
        x, y = (getattr(t.facts, key) if where == "facts" else t.origin.get(key) for t in (a, b))
        if x is None or y is None:
            found.append(f"{name} is unknown on side {'A' if x is None else 'B'}")
        elif x != y:
            found.append(f"{name} may explain it: {x} in A, {y} in B")
    return found


def _gap(x: Stats, y: Stats) -> float | None:
    """Largest absolute difference of the two moments that every source has; None where they share none.

    A moment that a measured side lacks (it has a count and nothing finite) is infinitely far from a number.
    """
    gaps = []
    for p, q in ((x.std, y.std), (x.mean, y.mean)):
        if p is not None and q is not None:
            gaps.append(abs(p - q))
        elif None not in (x.count, y.count):
            gaps.append(0.0 if p is q else math.inf)
    pairs = ((x.nan, y.nan), (x.inf, y.inf))
    gaps += [math.inf for p, q in pairs if p is not None and q is not None and p != q]
    return max(gaps, default=None)


def _room(trace: Trace) -> float:
    decimals = trace.origin.get("printed_decimals")
    return 0.0 if decimals is None else 2 * HALF * 10.0 ** -int(decimals)
