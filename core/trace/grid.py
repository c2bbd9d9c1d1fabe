"""View the cells of a trace as a grid: a number a cell at a scope, and its mark.

It judges a cell by its column; what a mark means for the run is found by hints.py. How it is printed: grid_text.
Kinds are the layers' kinds, one a layer (window or full attention, dense or experts): a layer is held against those of
its own kind. () is one kind. The residual (output) is every layer's work, and has one kind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from core.model.stages import GRID_STAGES, Place, place_order
from core.trace.finding import ABSENT, BAD, FALL_RATIO, OK, UNKNOWN, UNUSUAL, WATCH, WATCH_RATIO

if TYPE_CHECKING:  # a screen reads its grid before numpy is loaded
    from core.trace.stats import Cell, Stats

Cells: TypeAlias = "Mapping[Place, Cell]"


def value(cells: Cells, place: Place, scope: str, metric: str, kinds: Sequence[str] = ()) -> float | int | None:
    """Return one number of a cell, None where it is absent; the metric ratio is std over the layer before."""
    cell = cells.get(place)
    if metric == "ratio":
        return ratio(cells, place, scope, kinds)
    stats = cell.at(scope) if cell is not None else None
    found: float | int | None = getattr(stats, metric) if stats is not None else None
    return found


def metric_shown(cells: Cells, scope: str) -> str:
    """The metric that a page of numbers shows: std, and where a source has none of it, mean or l2."""
    found = stats_at(cells, scope).values()
    return next((m for m in ("std", "mean", "l2") if any(getattr(s, m) is not None for s in found)), "std")


def ratio(cells: Cells, place: Place, scope: str, kinds: Sequence[str] = ()) -> float | None:
    """Return std over the layer before; None at a kind's first layer, of a whole-model stage, over 0 or nothing."""
    before = place_before(place, kinds)
    if before is None:
        return None
    return divide(value(cells, place, scope, "std"), value(cells, before, scope, "std"))


def kind_of(layer: int, stage: str, kinds: Sequence[str]) -> str:
    """Say the kind that a layer has at a stage; "" where all are alike."""
    return kinds[layer] if layer < len(kinds) and stage != "output" else ""


def place_before(place: Place, kinds: Sequence[str] = ()) -> Place | None:
    """Return the stage's place in the nearest earlier layer of the same kind; None where there is none."""
    layer, stage = place
    kind = kind_of(layer or 0, stage, kinds)
    return next(((i, stage) for i in range((layer or 0) - 1, -1, -1) if kind_of(i, stage, kinds) == kind), None)


def divide(std: float | None, before: float | None) -> float | None:
    """Return std / before; None where either is missing or not finite, or before is 0."""
    if std is None or not before or not math.isfinite(std) or not math.isfinite(before):
        return None
    return std / before


def marks(cells: Cells, scope: str, threshold: float = 10.0, kinds: Sequence[str] = ()) -> dict[Place, str]:
    """Mark each grid cell of the layers that the cells have, at the scope."""
    return marks_of(stats_at(cells, scope), layers(cells), threshold, kinds)


def marks_of(
    stats: Mapping[Place, Stats], rows: Collection[int], threshold: float = 10.0, kinds: Sequence[str] = (),
) -> dict[Place, str]:
    """Mark each grid cell of the rows.

    X: a spike, NaN or Inf. !: from 3 to the threshold, a step, or a fall below 1/10. -: absent. ?: no std to judge.
    A full stop: none of these.
    """
    times = ratios(stats, kinds)
    fallen = falls(stats, times, kinds)
    found: dict[Place, str] = {}
    for place in ((layer, stage) for layer in rows for stage in GRID_STAGES):
        cell, multiple = stats.get(place), times.get(place, 1.0)
        if cell is None:
            found[place] = ABSENT
        elif cell.nan or cell.inf or (multiple > threshold and why_step(column_of(stats, place, kinds), place) is None):
            found[place] = BAD
        elif place in fallen or multiple >= WATCH_RATIO:
            found[place] = WATCH
        else:
            found[place] = UNKNOWN if cell.std is None else OK
    return found


def stats_at(cells: Cells, scope: str) -> dict[Place, Stats]:
    """Merge every cell at the scope; a cell that lacks the scope is left out."""
    merged = ((place, cell.at(scope)) for place, cell in cells.items())
    return {place: stats for place, stats in merged if stats is not None}


def ratios(stats: Mapping[Place, Stats], kinds: Sequence[str] = ()) -> dict[Place, float]:
    """Return the ratio of every grid cell that has one."""
    found: dict[Place, float] = {}
    for place, cell in stats.items():
        before = place_before(place, kinds) if place[1] in GRID_STAGES else None
        earlier = stats.get(before) if before is not None else None
        multiple = divide(cell.std, earlier.std) if earlier is not None else None
        if multiple is not None:
            found[place] = multiple
    return found


def column_of(stats: Mapping[Place, Stats], place: Place, kinds: Sequence[str] = ()) -> dict[int, float]:
    """Return the std of each layer that is of the place's kind and has a finite one above 0."""
    layer, stage = place
    kind = kind_of(layer or 0, stage, kinds)
    column = {i: s.std for (i, name), s in stats.items() if name == stage and i is not None
              and s.std and math.isfinite(s.std) and kind_of(i, stage, kinds) == kind}
    return dict(sorted(column.items()))


def why_step(column: Mapping[int, float], place: Place) -> str | None:
    """Say why a cell far above the layer before is no spike; None where its level stands out of its column.

    A spike is 3 x the median of the column's other layers. The residual stays raised and grows by itself: there it is
    3 x the highest layer before, and no less than a third of the median.
    """
    layer, stage = place
    level = column[layer or 0]
    times = level / _median([std for i, std in column.items() if i != layer])
    if stage != "output":
        return None if times >= UNUSUAL else f"{times:.1f} x its column's median"
    over = level / max(std for i, std in column.items() if i < (layer or 0))
    if over < UNUSUAL:
        return f"{over:.1f} x the highest layer before it"
    return None if times >= 1 / UNUSUAL else f"{times:.2g} x its column's median"


def _median(values: Sequence[float]) -> float:
    """Of values that are there; statistics.median loads more than a screen's start has time for."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def falls(stats: Mapping[Place, Stats], times: Mapping[Place, float], kinds: Sequence[str] = ()) -> set[Place]:
    """Return the places with a ratio below 1/10, but for those where a rise only comes back to the level before it.

    A cell with NaN or Inf is none: what of its values is finite is not what the layer made.
    """
    found: set[Place] = set()
    levels: dict[tuple[str, str], float] = {}  # of a stage and kind: the std before the last rise of 3 or more
    for place in sorted(times, key=place_order):
        column = (place[1], kind_of(place[0] or 0, place[1], kinds))
        multiple, std = times[place], stats[place].std or 0.0
        if multiple >= WATCH_RATIO:
            levels.setdefault(column, std / multiple)
        elif multiple < FALL_RATIO and not (stats[place].nan or stats[place].inf):
            level = levels.pop(column, None)
            if level is None or std * WATCH_RATIO < level:
                found.add(place)
    return found


def layers(cells: Cells) -> list[int]:
    """List the layers that have a cell, in order."""
    return sorted({layer for layer, _ in cells if layer is not None})
