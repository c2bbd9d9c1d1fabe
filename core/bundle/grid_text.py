"""Write the grid of a trace in 80 columns: its title, a number and a mark a cell, and what the marks mean."""

from __future__ import annotations

from collections.abc import Iterable

from core.model.stages import GRID_STAGES
from core.system.numbers import CELL_WIDTH, short
from core.system.safe_text import safe_text
from core.trace.finding import ABSENT, MARK_OF_KIND, OK, UNKNOWN, UNUSUAL, WATCH, Finding
from core.trace.grid import layers, marks, metric_shown, value
from core.trace.record import Trace

LAYER_WIDTH, LINE_WIDTH = 5, 80


def cell_text(x: float | int | None, mark: str = " ") -> str:
    """Write a grid cell of seven columns: the mark (blank for "." and "-"), then the number at the right."""
    return (mark if mark not in (OK, ABSENT) else " ") + short(x, CELL_WIDTH - 1).rjust(CELL_WIDTH - 1)


def header_lines() -> tuple[str, str]:
    """Write the ten stage names over their columns, broken at the underscore."""
    parts = [(head, tail) if tail else ("", head) for head, _, tail in (stage.partition("_") for stage in GRID_STAGES)]
    top, bottom = ("".join(part[i].rjust(CELL_WIDTH) for part in parts) for i in (0, 1))
    return " " * LAYER_WIDTH + top, "layer".rjust(LAYER_WIDTH) + bottom


def grid_text(trace: Trace, scope: str, findings: Iterable[Finding] = (), threshold: float = 10.0) -> str:
    """Write the grid in 80 columns: title, layers down, ten stages across, marks. Means, where a source has no std."""
    mark = marks(trace.cells, scope, threshold, trace.layer_kinds)
    for finding in findings:
        if mark.get(finding.place) in (OK, WATCH, UNKNOWN):
            mark[finding.place] = MARK_OF_KIND.get(finding.kind, WATCH) if finding.scope == scope else WATCH
    metric = metric_shown(trace.cells, scope)
    lines = [_cut(title) for title in title_lines(trace, scope)] + list(header_lines())
    for layer in layers(trace.cells):
        cells = (cell_text(value(trace.cells, (layer, s), scope, metric), mark[layer, s]) for s in GRID_STAGES)
        lines.append(str(layer).rjust(LAYER_WIDTH) + "".join(cells))
    lines.append(legend(threshold))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def legend(threshold: float = 10.0) -> str:
    """Say what the marks mean."""
    return f"X above {threshold:g} x the layer before and {UNUSUAL:g} x its column, NaN, Inf  ! watch  - absent"


def title_lines(trace: Trace, scope: str) -> list[str]:
    """Say what the grid shows: model and how it ran, then scope and tokens; PLANTED where a bug was planted."""
    facts = trace.facts
    known = (trace.name, facts.arch, facts.engine, facts.compute, facts.device)
    n_token = f"{len(trace.tokens)} token{'s' * (len(trace.tokens) != 1)}" if trace.tokens else "tokens unknown"
    lines = ["  ".join(safe_text(str(k)) for k in known if k), 
             f"{metric_shown(trace.cells, scope)} at scope {scope}, {n_token}"]
    if trace.planted:
        lines.insert(0, f"PLANTED {safe_text(trace.planted)}: this run carries a bug put there on purpose")
    return lines


def _cut(line: str) -> str:
    return line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 3] + "..."
