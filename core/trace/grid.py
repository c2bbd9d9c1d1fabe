"""View the cells of a trace as a grid: a number a cell at a scope, and its mark.

It judges a cell by its number alone; what a mark means for the run is found by hints.py. How it is printed: grid_text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from core.model.stages import GRID, Place, place_order
from core.trace.marks import ABSENT, BAD, FALL_RATIO, OK, UNKNOWN, WATCH, WATCH_RATIO

if TYPE_CHECKING:  # a screen reads its grid before numpy is loaded
    from core.trace.stats import Cell, Stats

Cells: TypeAlias = "Mapping[Place, Cell]"


def value(cells: Cells, place: Place, scope: str, metric: str) -> float | int | None:
    """Return one number of a cell, None where it is absent; the metric ratio is std over the layer before."""
    cell = cells.get(place)
    if metric == "ratio":
        return ratio(cells, place, scope)
    stats = cell.at(scope) if cell is not None else None
    found: float | int | None = getattr(stats, metric) if stats is not None else None
    return found


def ratio(cells: Cells, place: Place, scope: str) -> float | None:
    """Return std over that of the layer before; None at layer 0, of a whole-model stage, over 0 or nothing."""
    layer, stage = place
    if not layer:
        return None
    return divided(value(cells, place, scope, "std"), value(cells, (layer - 1, stage), scope, "std"))


def divided(std: float | None, before: float | None) -> float | None:
    """Return std / before; None where either is missing or not finite, or before is 0."""
    if std is None or not before or not math.isfinite(std) or not math.isfinite(before):
        return None
    return std / before


def marks(cells: Cells, scope: str, threshold: float = 10.0) -> dict[Place, str]:
    """Mark each grid cell.

    X: above the threshold, NaN or Inf. !: from 3 to the threshold, or a fall below 1/10. -: absent. ?: no std to judge.
    A full stop: none of these.
    """
    stats = stats_at(cells, scope)
    times = ratios(stats)
    fallen = falls(stats, times)
    found: dict[Place, str] = {}
    for place in ((layer, stage) for layer in layers(cells) for stage in GRID):
        cell, multiple = stats.get(place), times.get(place)
        if cell is None:
            found[place] = ABSENT
        elif cell.nan or cell.inf or (multiple is not None and multiple > threshold):
            found[place] = BAD
        elif place in fallen or (multiple is not None and multiple >= WATCH_RATIO):
            found[place] = WATCH
        else:
            found[place] = UNKNOWN if cell.std is None else OK
    return found


def stats_at(cells: Cells, scope: str) -> dict[Place, Stats]:
    """Merge every cell at the scope; a cell that lacks the scope is left out."""
    merged = ((place, cell.at(scope)) for place, cell in cells.items())
    return {place: stats for place, stats in merged if stats is not None}


def ratios(stats: Mapping[Place, Stats]) -> dict[Place, float]:
    """Return the ratio of every grid cell that has one."""
    found: dict[Place, float] = {}
    for (layer, stage), cell in stats.items():
        before = stats.get((layer - 1, stage)) if layer and stage in GRID else None
        multiple = divided(cell.std, before.std) if before is not None else None
        if multiple is not None:
            found[layer, stage] = multiple
    return found


def falls(stats: Mapping[Place, Stats], times: Mapping[Place, float]) -> set[Place]:
    """Return the places with a ratio below 1/10, but for those where a rise only comes back to the level before it."""
    found: set[Place] = set()
    for stage in GRID:
        level: float | None = None  # the std before the last rise of 3 or more
        for place in sorted((p for p in times if p[1] == stage), key=place_order):
            multiple, std = times[place], stats[place].std or 0.0
            if multiple >= WATCH_RATIO and level is None:
                level = std / multiple
            elif multiple < FALL_RATIO:
                if level is None or std * WATCH_RATIO < level:
                    found.add(place)
                level = None
    return found


def layers(cells: Cells) -> list[int]:
    """List the layers that have a cell, in order."""
    return sorted({layer for layer, _ in cells if layer is not None})
