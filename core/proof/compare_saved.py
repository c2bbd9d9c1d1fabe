"""Compare where a side is saved and cannot be run again: by its values where both have them, else by statistics.

No weights are at hand, so that no floor is measured and no side is found wrong; the reasons say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from core.model.stages import GRID_STAGES, Place, place_order, place_text
from core.trace.engines import HALF_CACHE
from core.trace.measures import (
    MIN_REL_L2_FLOOR,
    Difference,
    State,
)
from core.trace.record import Trace
from core.trace.stats import ScopeStats, Stats

HALF = 0.5  # of the last printed decimal
PRINTED_HALF = 5e-5  # of the four decimals that a log prints
# What rounding has grown to by the later layers, in units of the coarsest that either side declares. Real logs of
# llama.cpp: at most 1.4, float16 cache on stories260K, q8 on SmolLM2; the logits, a row through a head, 2.5 and 30.
GROWN, GROWN_LOGITS = 3.0, 40.0
SAMPLED = 115.0  # units that single values may differ by, relative to their size: clean logs reach 11 (float16 cache on
# stories260K), 70 (q8 on SmolLM2) and 96 (q8 on Gemma 3 270M)
HALF_UNIT = 2.0**-11  # of float16
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

    if not a.values or not b.values:
        return {}
    floor = _floor(a, b)
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


@dataclass(frozen=True, slots=True)
class StatsDiff:
    """Which cells have other statistics. first: the earliest; None where all that both have are equal.

    sentences: those cells, then those that one side lacks. n_mean: compared cells of which a side has no std.
    """

    first: Place | None
    sentences: tuple[str, ...]
    n_mean: int = 0


def diff_stats(a: Trace, b: Trace, scope: str) -> StatsDiff:
    """Compare statistics cell by cell, beyond their printed precision and what rounding of other engines may make.

    A cell of the last token alone is compared at it.
    """
    absolute, printed, noise = max(_room(a), _room(b)), max(_digits(a), _digits(b)), _noise(a, b)
    first, other, absent, n_compared, n_mean = None, list[str](), list[str](), 0, 0
    for place in sorted(set(a.cells) | set(b.cells), key=place_order):
        x, y = (t.cells[place].at(scope) if place in t.cells else None for t in (a, b))
        if (x is None) != (y is None) and all(place in t.cells for t in (a, b)):
            x, y = (t.cells[place].at("last") for t in (a, b))
        if x is None or y is None:
            if (x is None) != (y is None) and _is_owed(place, (a, b)[x is not None]):
                absent.append(f"{place_text(place)} is absent on side {'A' if x is None else 'B'}")
            continue
        gap = _gap(x, y)
        n_compared += gap is not None
        n_mean += gap is not None and None in (x.std, y.std)
        grown = GROWN_LOGITS / GROWN if place[1] == "logits" else 1.0
        if gap is not None and not gap <= absolute + max(printed, noise * grown) * _size(x, y):
            first = first or place
            other.append(f"{place_text(place)}: {_both(x, y)}")
        elif (apart := _sampled(place, a, b)) is not None and apart > SAMPLED * max(noise / GROWN, MIN_REL_L2_FLOOR):
            first = first or place
            other.append(f"{place_text(place)}: the values that are shown differ by {apart:.2g} of their size")
    unseen = [] if n_compared else ["no cell has a statistic that both sides give"]
    return StatsDiff(first, (*other, *absent, *unseen), n_mean)


def _is_owed(place: Place, side: Trace) -> bool:
    """Whether a side that lacks a place was cut: a stage of the grid, or one of which it shows the like elsewhere."""
    return place[1] in GRID_STAGES or any(
        stage == place[1] or (layer is None and place[0] is None) for layer, stage in side.cells)


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

    Where a side has no mean, both may have the l2, taken a value; a measured side that has neither (nothing of it is
    finite) is infinitely far from a number.
    """
    gaps = [abs(p - q) for p, q in ((x.std, y.std), (x.mean, y.mean)) if p is not None and q is not None]
    if None not in (x.count, y.count) and None in (x.mean, y.mean):
        if x.l2 is not None and y.l2 is not None:
            gaps.append(abs(x.l2 - y.l2) / math.sqrt(max(x.count or 1, 1)))
        else:
            gaps.append(0.0 if x.mean is y.mean else math.inf)
    pairs = ((x.nan, y.nan), (x.inf, y.inf))
    gaps += [math.inf for p, q in pairs if p is not None and q is not None and p != q]
    return max(gaps, default=None)


def _sampled(place: Place, a: Trace, b: Trace) -> float | None:
    """How far the values that one side shows lie from the other's, relative to these; None where nothing says it.

    Half a last printed digit of each is left out.
    """
    import torch

    for shown, whole in ((a, b), (b, a)):
        cell, values = shown.cells.get(place), (whole.values or {}).get(place)
        if not isinstance(cell, ScopeStats) or not cell.samples or values is None:
            continue
        x_TW = torch.as_tensor(values).double()
        token, channel = (torch.tensor([s[i] for s in cell.samples]) for i in (0, 1))
        row = token - (len(whole.tokens) - len(x_TW))
        if int(row.min()) < 0 or int(row.max()) >= len(x_TW) or int(channel.max()) >= x_TW.shape[1]:
            return math.inf
        x = x_TW[row, channel]
        gap = (torch.tensor([s[2] for s in cell.samples], dtype=torch.float64) - x).abs() - PRINTED_HALF
        return float(gap.clamp(min=0).norm() / x.norm()) if bool(x.any()) else None
    return None


def has_samples(trace: Trace) -> bool:
    """Whether a trace shows single values, so that whoever runs beside it is to keep its own."""
    return any(isinstance(cell, ScopeStats) and cell.samples for cell in trace.cells.values())


def _both(x: Stats, y: Stats) -> str:
    name = next((n for n in ("std", "mean", "l2") if None not in (getattr(x, n), getattr(y, n))), "mean")
    return f"{name} {getattr(x, name)} in A, {getattr(y, name)} in B"


def _size(x: Stats, y: Stats) -> float:
    """The root mean square that a moment's rounding goes with, of the side that knows it best."""
    return max((math.hypot(s.mean or 0.0, s.std or 0.0) for s in (x, y)), default=0.0)


def _noise(a: Trace, b: Trace) -> float:
    """What other rounding may make of a moment, relative to the values' size: 0 where one program made both alike."""
    if a.facts.engine == b.facts.engine and a.facts.compute == b.facts.compute:
        return 0.0
    halves = [HALF_UNIT for t in (a, b) if HALF_CACHE in (t.facts.kernel or "")]
    return max(UNMEASURED * MIN_REL_L2_FLOOR, *(GROWN * unit for unit in (*_units(a, b), *halves)))


def _floor(a: Trace, b: Trace) -> float:
    return max(UNMEASURED * MIN_REL_L2_FLOOR, *_units(a, b))


def _units(a: Trace, b: Trace) -> list[float]:
    """The relative rounding of the computes that the sides declare; 0 of one that is not known."""
    from core.quant.activations import COMPUTES

    return [COMPUTES[t.facts.compute].unit if t.facts.compute in COMPUTES else 0.0 for t in (a, b)]


def _digits(trace: Trace) -> float:
    """Half of the last printed digit, relative, where a source prints so many digits of each number."""
    digits = trace.origin.get("printed_digits")
    return 0.0 if digits is None else 10.0 ** (1 - int(digits))


def _room(trace: Trace) -> float:
    decimals = trace.origin.get("printed_decimals")
    return 0.0 if decimals is None else 2 * HALF * 10.0 ** -int(decimals)
