"""Compare where a side is saved and cannot be run again: by its values where both have them, else by statistics.

No weights are at hand, so that no floor is measured and no side is found wrong; the reasons say so.
"""

from __future__ import annotations

from core.stages import GRID, Place, place_order, place_text
from core.stats import Stats
from core.trace import Trace
from core.verdict import Difference

HALF = 0.5  # of the last printed decimal


def value_cells(a: Trace, b: Trace, scope: str) -> dict[Place, Difference]:
    """Measure B against A at every place that both have kept."""
    import torch

    from core.distance import difference
    from core.pair import judged, scope_rows

    cells = {}
    for place in sorted(set(a.values or {}) & set(b.values or {}), key=place_order):
        assert a.values is not None and b.values is not None
        x, y = (torch.as_tensor(v[place]).float() for v in (a.values, b.values))
        if x.shape != y.shape:
            cells[place] = Difference(None, None, None, None, None, state="absent")
            continue
        rows = scope_rows(scope, len(a.tokens), len(x))
        if rows:
            cells[place] = judged(difference(x[rows], y[rows], len(a.tokens) - len(x) + rows[0]))
    return cells


def differing_stats(a: Trace, b: Trace, scope: str) -> list[str]:
    """List the places whose statistics differ beyond the printed precision; [] where all are equal or absent on both sides."""
    room = max(_room(a), _room(b))
    found = []
    for place in sorted(set(a.cells) | set(b.cells), key=place_order):
        x, y = (t.cells[place].at(scope) if place in t.cells else None for t in (a, b))
        if x is None or y is None:
            if (x is None) != (y is None) and place[1] in GRID:
                found.append(f"{place_text(place)} is absent on side {'A' if x is None else 'B'}")
            continue
        gap = _gap(x, y)
        if gap > room:
            found.append(f"{place_text(place)}: std {x.std} in A, {y.std} in B")
    return found


def _gap(x: Stats, y: Stats) -> float:
    """Largest absolute difference of the two moments that every source has."""
    pairs = ((x.std, y.std), (x.mean, y.mean))
    return max((abs(p - q) for p, q in pairs if p is not None and q is not None), default=0.0)


def _room(trace: Trace) -> float:
    decimals = trace.origin.get("printed_decimals")
    return 0.0 if decimals is None else 2 * HALF * 10.0 ** -int(decimals)
