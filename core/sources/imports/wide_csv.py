"""Read a wide table of stds: a column layer, a column for each stage it has. It says no tokens, scope or definition."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from core.model.stages import ALIASES, GRID_STAGES, UNKNOWN_SCOPE, Place
from core.sources.imports.stated_facts import (
    Stated,
    bad_line,
    printed_precision,
    scope_cells,
    unknown_notes,
    without_unmeasured,
)
from core.system.errors import FileError
from core.system.limits import CELLS, COLUMNS
from core.trace.record import CaptureContract, Token, Trace
from core.trace.stats import Stats

LONGEST = 64  # characters of a printed number


def read_wide_csv(text: str, path: Path, stated: Stated) -> Trace:
    """Read the table; an empty cell is absent. FileError names the line."""
    lines = _lines(text, path)
    columns = _columns(path, *lines[0])
    stats: dict[Place, Stats] = {}
    printed: list[str] = []
    before = -1
    for line, row in lines[1:]:
        if len(row) != len(columns):
            raise bad_line(path, line, f"a row of {len(columns)} cells", ",".join(row))
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
        layer = _layer(path, line, cells.pop("layer"), before)
        before = layer
        for stage, cell in cells.items():
            if cell:
                stats[layer, stage] = Stats(std=_std(path, line, stage, cell))
                printed.append(cell)
    if not stats:
        raise FileError(f"{path.name} has no value under its heading line. Export the table again, whole.")
    measured, notes = without_unmeasured(stats)
    facts = CaptureContract(
        engine=None, arch=None, n_layer=None, d_model=None, n_vocab=None, definition=stated.definition,
        scopes=(stated.scope or UNKNOWN_SCOPE,),
    )
    unknown = unknown_notes(
        scope=stated.scope, tokens=stated.tokens, definition=stated.definition, engine=None, architecture=None,
        depth=None,
        widths=None, vocabulary=None,
    )
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(id) for id in stated.tokens or ()),
        cells=scope_cells(measured, stated.scope), notes=(*notes, *unknown),
        origin={"kind": "a table of stds", **printed_precision(printed)},
    )


def _lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows that say something, each with the line it ends on."""
    rows = csv.reader(io.StringIO(text), strict=True)
    lines, n_cell = list[tuple[int, list[str]]](), 0
    try:
        for row in rows:
            n_cell += len(row)
            if len(row) > COLUMNS or n_cell > CELLS:
                raise bad_line(path, rows.line_num, f"a table of {COLUMNS} columns and {CELLS} cells at most",
                               f"{len(row)} cells, {n_cell} in all")
            if any(cell.strip() for cell in row):
                lines.append((rows.line_num, row))
    except csv.Error as error:
        raise bad_line(path, rows.line_num, "a row of comma-separated cells", str(error)) from None
    return lines


def _columns(path: Path, line: int, row: list[str]) -> list[str]:
    names = [ALIASES.get(cell.strip(), cell.strip()) for cell in row]
    strange = [name for name in names if name not in ("layer", *GRID_STAGES)]
    if strange or len(names) == 1:
        found = ", ".join(strange) or "no stage"
        raise bad_line(path, line, f"a column layer and columns of {', '.join(GRID_STAGES)}", found)
    if len(set(names)) != len(names):
        raise bad_line(path, line, "each column once", ",".join(row))
    return names


def _layer(path: Path, line: int, cell: str, before: int) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) < 7):
        raise bad_line(path, line, "a layer's number", cell)
    if int(cell) <= before:
        raise bad_line(path, line, f"a layer after {before} (layers ascend, each once)", cell)
    return int(cell)


def _std(path: Path, line: int, stage: str, cell: str) -> float:
    try:
        std = float(cell)
    except ValueError:
        std = math.nan
    if not math.isfinite(std) or std < 0 or not cell.isascii() or "_" in cell or len(cell) > LONGEST:
        raise bad_line(path, line, f"a finite std of {stage}, 0 or above, or nothing", cell)
    return std
