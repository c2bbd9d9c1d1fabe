"""Read statistics a row a cell: CSV with the columns layer, stage and any statistic, or JSON objects of the same keys.

A row: layer (empty or null for a whole-model stage), stage, scope (else --scope), and mean, std, min, max, absmax, l2,
count, nan, inf, zero, of which one at least. JSONL has an object a line, JSON a list. A first object without a layer or
stage may say tokens, scope, definition, engine. This is stats.csv of a bundle, too.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.model.stages import ALIASES, UNKNOWN_SCOPE, Place, parse_stored_scope, place_order, place_text, stage_named
from core.sources.imports.stated_facts import (
    DEFINITIONS,
    Stated,
    bad_line,
    printed_precision,
    settle_fact,
    unknown_notes,
)
from core.system.errors import AprError, FileError
from core.system.json_text import from_json
from core.system.limits import CELLS, LAYERS
from core.trace.metrics import STATS
from core.trace.record import CaptureContract, Token, Trace, is_token_id
from core.trace.stats import ScopeStats, Stats

COLUMNS = {s.name: s for s in STATS}
FACTS = ("tokens", "scope", "definition", "engine")
LONGEST = 64  # characters of a printed number

Row = Mapping[str, Any]


def read_statistic_rows(text: str, path: Path, stated: Stated) -> Trace:
    """Read the rows; FileError names the line."""
    head, rows = _head(path, list(_json_rows(text, path) if text.lstrip()[:1] in ("{", "[") else _csv_rows(text, path)))
    tokens = settle_fact("tokens", head.get("tokens"), stated.tokens)
    definition = settle_fact("definition", head.get("definition"), stated.definition)
    scope = settle_fact("scope", head.get("scope"), stated.scope)
    found: dict[Place, dict[str, Stats]] = {}
    printed = list[str]()
    for line, row in rows:
        place, own = _place(path, line, row), str(row.get("scope") or scope or UNKNOWN_SCOPE)
        try:
            scopes = found.setdefault(place, {})
            if parse_stored_scope(own) in scopes:
                raise bad_line(path, line, "each cell once", place_text(place))
        except AprError as error:
            raise error if isinstance(error, FileError) else bad_line(path, line, "a scope", own) from None
        scopes[own] = _stats(path, line, row, printed)
    if not found:
        raise FileError(f"{path.name} has no row of statistics. Export the table again, whole.")
    scopes_seen = tuple(sorted({s for each in found.values() for s in each}))
    facts = CaptureContract(head.get("engine"), None, None, None, None, definition, scopes=scopes_seen)
    unknown = unknown_notes(scope=None if UNKNOWN_SCOPE in scopes_seen else scopes_seen, tokens=tokens,
                            definition=definition, engine=facts.engine, architecture=None, depth=None, widths=None)
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(i) for i in tokens or ()), notes=unknown,
        cells={p: ScopeStats(found[p]) for p in sorted(found, key=place_order)},
        origin={"kind": "rows of statistics", **(printed_precision(printed) if printed else {})})


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        names: list[str] = []
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not names:
                names = cells
                if len(set(names)) != len(names):
                    raise bad_line(path, rows.line_num, "each column once", ",".join(row))
                continue
            if len(cells) != len(names):
                raise bad_line(path, rows.line_num, f"a row of {len(names)} cells", ",".join(row))
            yield rows.line_num, {k: v for k, v in zip(names, cells, strict=True) if v}
    except csv.Error as error:
        raise bad_line(path, rows.line_num, "a row of comma-separated cells", str(error)) from None


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    if text.lstrip().startswith("["):
        found = from_json(text, path.name, "Export it again, whole.")
        lines = list(enumerate(found if isinstance(found, list) else [found], 1))
    else:
        lines = [(i, from_json(line, f"{path.name}, line {i},", "Export it again, whole."))
                 for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    for line, row in lines:
        if not isinstance(row, dict):
            raise bad_line(path, line, "an object of statistics", str(row))
        yield line, {k: v for k, v in row.items() if v is not None}


def _head(path: Path, rows: list[tuple[int, Row]]) -> tuple[dict[str, Any], list[tuple[int, Row]]]:
    if len(rows) > CELLS:
        raise FileError(f"{path.name} has {len(rows)} rows; at most {CELLS} are read.")
    if not rows or "stage" in rows[0][1] or "layer" in rows[0][1]:
        return {}, rows
    line, said = rows[0]
    ids, texts = said.get("tokens"), {k: said.get(k) for k in FACTS[1:]}
    fine = ids is None or (isinstance(ids, list) and ids and all(map(is_token_id, ids)))
    if (not fine or set(said) - set(FACTS) or not all(t is None or isinstance(t, str) for t in texts.values())
            or texts["definition"] not in (None, *DEFINITIONS)):
        raise bad_line(path, line, f"facts: {', '.join(FACTS)}", str(dict(said)))
    return {"tokens": None if ids is None else tuple(ids), **texts}, rows[1:]


def _place(path: Path, line: int, row: Row) -> Place:
    stage, layer = row.get("stage"), row.get("layer")
    try:
        known = stage_named(ALIASES.get(str(stage), str(stage))) if isinstance(stage, str) else None
    except AprError:
        known = None
    if known is None:
        raise bad_line(path, line, "a stage (attn_norm, ffn_out, output ...)", str(stage))
    number = int(layer) if isinstance(layer, str) and layer.isascii() and layer.isdigit() and len(layer) < 7 else layer
    if known.whole and number is None:
        return None, known.name
    if type(number) is not int or not 0 <= number < LAYERS or known.whole:
        raise bad_line(path, line, f"a layer's number for {known.name}, or none for a whole-model stage", str(layer))
    return number, known.name


def _stats(path: Path, line: int, row: Row, printed: list[str]) -> Stats:
    numbers: dict[str, Any] = {}
    for name, value in row.items():
        known = COLUMNS.get(name)
        if known is None:
            if name in ("layer", "stage", "scope"):
                continue
            raise bad_line(path, line, f"statistics ({', '.join(COLUMNS)})", name)
        try:
            number = math.nan if isinstance(value, bool) or len(str(value)) > LONGEST else float(value)
        except (TypeError, ValueError):
            number = math.nan
        wrong = not math.isfinite(number) or (known.is_size and number < 0)
        if wrong or (known.is_whole and not (number >= 0 and number == int(number))):
            raise bad_line(path, line, f"a number for {name}", str(value))
        if name in ("std", "mean"):
            printed.append(str(value))
        numbers[name] = int(number) if known.is_whole else number
    if not numbers:
        raise bad_line(path, line, f"a statistic ({', '.join(COLUMNS)})", str(dict(row)))
    return Stats(**numbers)
