"""View the cells of a trace as a grid: a number a cell at a scope, its mark, and the printed form.

It judges a cell by its number alone; what a mark means for the run is found by spikes.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from core.finding import Finding
from core.safe_text import safe_text
from core.stages import GRID, Place, place_order
from core.stats import Cell, Stats
from core.trace import Trace

METRICS = ("std", "mean", "min", "max", "absmax", "l2", "nan", "inf", "zero", "ratio")
OK, WATCH, BAD, ABSENT, UNKNOWN = ".", "!", "X", "-", "?"
WATCH_RATIO = 3.0  # from here to the threshold: a precursor or a watch mark
FALL_RATIO = 0.1
MARK_OF_KIND = {"nan": BAD, "ratio": BAD, "downstream": BAD}  # any other kind: watch
LAYER_WIDTH, CELL_WIDTH, LINE_WIDTH = 5, 7, 80

Cells = Mapping[Place, Cell]


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


def short(x: float | int | None, width: int = CELL_WIDTH) -> str:
    """Shorten a number to six characters and its sign, or to width: 11.459, 0.0021, 1.2e-7, -1.2e-7, nan, inf, -.

    The most decimals that fit, four at most; powers of ten below 0.001 and where the digits do not fit.
    """
    if x is None:
        return "-"
    if not math.isfinite(x) or x == 0:
        return str(x) if x else "0"
    sign, size = ("-" if x < 0 else ""), abs(x)
    room = min(CELL_WIDTH - 1, width - len(sign))
    forms = [] if size < 0.001 else [str(size)] if isinstance(x, int) else [f"{size:.{d}f}" for d in (4, 3, 2, 1, 0)]
    forms += [_powers(size, d) for d in (1, 0)]
    return next((sign + form for form in forms if len(form) <= room), sign + ("inf" if size > 1 else "0.0"))


def _powers(size: float, decimals: int) -> str:
    mantissa, power = f"{size:.{decimals}e}".split("e")
    return f"{mantissa}e{int(power)}"


def cell_text(x: float | int | None, mark: str = " ") -> str:
    """Write a grid cell of seven columns: the mark (blank for "." and "-"), then the number at the right."""
    return (mark if mark not in (OK, ABSENT) else " ") + short(x, CELL_WIDTH - 1).rjust(CELL_WIDTH - 1)


def header_lines() -> tuple[str, str]:
    """Write the ten stage names over their columns, broken at the underscore."""
    parts = [(head, tail) if tail else ("", head) for head, _, tail in (stage.partition("_") for stage in GRID)]
    top, bottom = ("".join(part[i].rjust(CELL_WIDTH) for part in parts) for i in (0, 1))
    return " " * LAYER_WIDTH + top, "layer".rjust(LAYER_WIDTH) + bottom


def grid_text(trace: Trace, scope: str, findings: Iterable[Finding] = (), threshold: float = 10.0) -> str:
    """Write the grid of stds in 80 columns: a title, layers down, ten stages across, and what the marks mean."""
    mark = marks(trace.cells, scope, threshold)
    for finding in findings:
        if mark.get(finding.place) in (OK, WATCH, UNKNOWN):
            mark[finding.place] = MARK_OF_KIND.get(finding.kind, WATCH) if finding.scope == scope else WATCH
    lines = [_cut(title) for title in title_lines(trace, scope)] + list(header_lines())
    for layer in layers(trace.cells):
        cells = (cell_text(value(trace.cells, (layer, s), scope, "std"), mark[layer, s]) for s in GRID)
        lines.append(str(layer).rjust(LAYER_WIDTH) + "".join(cells))
    lines.append(legend(threshold))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def legend(threshold: float = 10.0) -> str:
    """Say what the marks mean."""
    watch = f"{WATCH_RATIO:g} to {threshold:g} x, or below {FALL_RATIO:g} x"
    return f"X above {threshold:g} x the layer before, NaN, Inf  ! {watch}  - absent"


def title_lines(trace: Trace, scope: str) -> list[str]:
    """Say what the grid shows: model and how it ran, then scope and tokens; PLANTED where a bug was planted."""
    facts = trace.facts
    known = (trace.name, facts.arch, facts.engine, facts.compute, facts.device)
    n_token = f"{len(trace.tokens)} token{'s' * (len(trace.tokens) != 1)}" if trace.tokens else "tokens unknown"
    lines = ["  ".join(safe_text(str(k)) for k in known if k), f"std at scope {scope}, {n_token}"]
    if trace.planted:
        lines.insert(0, f"PLANTED {safe_text(trace.planted)}: this run carries a bug put there on purpose")
    return lines


def _cut(line: str) -> str:
    return line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 3] + "..."
