"""Write a trace as a bundle, whole or not at all, and open a saved one. It measures and judges nothing.

polars is imported inside the functions: the first screen does without it.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.cell_table import INTEGERS, STATS, STATS_COLUMNS, TOKENS_COLUMNS, stats_rows, token_stats, tokens_columns
from core.manifest import MOST_LAYERS, Manifest, check_schema, manifest_text
from core.model.stages import GRID, Place, parse_stored_scope, place_order, stage_named
from core.report import report_markdown, report_text
from core.system.atomic import MANIFEST, new_folder
from core.system.atomic_file_tmp import new_file
from core.system.errors import FileError, OutputError, UsageError, os_reason
from core.system.json_text import from_json, to_json
from core.trace.finding import Finding
from core.trace.grid import layers, value
from core.trace.record import Trace
from core.trace.stats import Cell, ScopeStats, Stats
from core.trace.values_file import open_values, write_values

if TYPE_CHECKING:
    import polars as pl

VALUES = "values.safetensors"
WIDE = f"layer,{GRID[0]}".encode()                 # how every wide grid begins
WHOLE = ("layer", "token", "token_id", *INTEGERS)  # columns of whole numbers
NEEDED = ("stage", "scope", "token")               # columns that no row leaves empty


def write_bundle(
    out: Path, trace: Trace, *, scope: str, findings: Sequence[Finding], manifest_extra: Mapping[str, object],
    force: bool, values: bool, threshold: float = 10.0,
) -> Path:
    """Write a bundle and return its folder; UsageError where one stands and force is not set, OutputError."""
    with new_folder(out, force=force) as part:
        files = {
            "stats.csv": stats_csv(trace), "grid-std.csv": wide_csv(trace, scope), "tokens.csv": tokens_csv(trace),
            "findings.json": findings_json(findings), "report.txt": report_text(trace, scope, findings, threshold),
            "report.md": report_markdown(trace, scope, findings, threshold),
        }
        sha256: dict[str, str] = {}
        for name, text in files.items():
            data = text.encode()
            (part / name).write_bytes(data)
            sha256[name] = hashlib.sha256(data).hexdigest()
        if values and trace.values is not None:
            sha256[VALUES] = write_values(part / VALUES, trace.values)
        (part / MANIFEST).write_text(manifest_text(trace, scope, manifest_extra, sha256), encoding="ascii")
    return out


def hold_csv(path: Path, force: bool) -> None:
    """Refuse to replace a file that holds no wide grid, before the work; UsageError."""
    try:
        if force or not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(len(WIDE))
    except OSError as error:
        raise UsageError(f"--csv {path} exists and cannot be read: {os_reason(error)}. Give another name.") from error
    if start not in (b"", WIDE):
        raise UsageError(f"--csv {path} exists and is no grid of apr-tui, so it is left as it is. "
                         "Give another name, or --force to replace it.")


def write_wide_csv(path: Path, trace: Trace, scope: str) -> None:
    """Write the wide grid alone: the bytes of a bundle's grid-std.csv; OutputError."""
    data = wide_csv(trace, scope).encode()
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)  # a pipe or a device, which must not be replaced
            return
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}. Give a file's name.") from error
    with new_file(path.resolve(), force=True) as part:
        part.write_bytes(data)


def stats_csv(trace: Trace) -> str:
    """Write every cell at every scope that it has."""
    cells = stats_rows(trace.cells)
    rows = [(*place, scope, *(getattr(stats, name) for name in STATS)) for place, scope, stats in cells]
    return _csv({name: [row[i] for row in rows] for i, name in enumerate(STATS_COLUMNS)})


def wide_csv(trace: Trace, scope: str) -> str:
    """Write the std grid at a scope: layers down, ten stages across."""
    down = layers(trace.cells)
    columns = {stage: [value(trace.cells, (layer, stage), scope, "std") for layer in down] for stage in GRID}
    return _csv({"layer": down, **columns})


def tokens_csv(trace: Trace) -> str:
    """Write every cell's row of each token; only the header where the source has no per-token statistics."""
    return _csv(tokens_columns(trace))


def findings_json(findings: Sequence[Finding]) -> str:
    """Write the findings as a list, one a line."""
    return "[\n" + ",\n".join(to_json(f) for f in findings) + "\n]\n"


def _csv(columns: Mapping[str, Any]) -> str:
    """Write columns as CSV: shortest round-trip floats, an empty cell for None; NaN in an array is None."""
    import polars as pl

    series = []
    for name, column in columns.items():
        kind = pl.Int64 if name in WHOLE else pl.String if name in ("stage", "scope") else pl.Float64
        if isinstance(column, np.ndarray):
            series.append(pl.Series(name, column, nan_to_null=True).cast(kind))
        else:
            series.append(pl.Series(name, column, dtype=kind, strict=False))
    return pl.DataFrame(series).write_csv()


def read_bundle(folder: Path) -> Trace:
    """Open a saved bundle; FileError names the file, the line and what was needed.

    The tables and findings must be what the manifest's sha256 says; values are read later, stage by stage.
    """
    manifest = _read_manifest(folder)
    stats = _read_stats(folder / "stats.csv")
    rows = _read_tokens(folder / "tokens.csv")
    for name in ("stats.csv", "tokens.csv", "findings.json"):
        _check_sha256(folder / name, manifest)
    channels = manifest.channels()
    strange = sorted(set(rows) - set(stats), key=place_order)
    if strange:
        raise FileError(f"{folder / 'tokens.csv'} has rows of {strange[0]}, stats.csv has none. Trace again.")
    cells: dict[Place, Cell] = {}
    try:
        for place, scopes in stats.items():
            found = rows.get(place)
            cells[place] = token_stats(found, channels.get(place, {}), scopes) if found else ScopeStats(scopes)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{manifest.name}: key 'channels' is damaged ({error}). Trace again.") from error
    return Trace(
        name=manifest.get("model", str, needed=True), facts=manifest.facts(), tokens=manifest.tokens(), cells=cells,
        top=manifest.top(), generated=manifest.get("generated", str), observed_equals_unobserved=manifest.witness(),
        planted=manifest.get("planted", str), notes=tuple(str(n) for n in manifest.get("notes", list) or ()),
        values=open_values(folder / VALUES) if (folder / VALUES).exists() else None,
        origin=manifest.origin(),
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    document = from_json(_bytes(path), str(path), "The bundle is damaged; trace again.")
    manifest = Manifest(str(path), document if isinstance(document, dict) else {})
    check_schema(manifest)
    return manifest


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if path.name == "stats.csv" and (path.parent / "verdict.json").exists():
            raise FileError(f"{path.parent} is a comparison's folder. Open its a or its b.") from error
        why = error.strerror or str(error)
        raise FileError(f"{path} cannot be read: {why}. A whole bundle was needed; trace again with --out.") from error


def _check_sha256(path: Path, manifest: Manifest) -> None:
    wanted = (manifest.get("sha256", dict) or {}).get(path.name)
    found = hashlib.sha256(_bytes(path)).hexdigest()
    if found != wanted:
        raise FileError(f"{path} was changed after it was written: its sha256 is {found[:12]}, "
                        f"{MANIFEST} says {str(wanted)[:12]}. Trace again.")


def _read_stats(path: Path) -> dict[Place, dict[str, Stats]]:
    table = _table(path, STATS_COLUMNS)
    found: dict[Place, dict[str, Stats]] = {}
    columns = (table[name].to_list() for name in STATS_COLUMNS)
    for line, (layer, stage, scope, *numbers) in enumerate(zip(*columns, strict=True), 2):
        scopes = found.setdefault((layer, _stage(path, line, stage)), {})
        try:
            if parse_stored_scope(scope) in scopes:
                raise UsageError(f"{stage} at scope {scope} stands there twice.")
        except UsageError as error:
            raise FileError(f"{path} line {line}: {error} Trace again.") from error
        scopes[scope] = Stats(*numbers)
    return found


def _stage(path: Path, line: int, name: str) -> str:
    try:
        return stage_named(name).name
    except UsageError as error:
        raise FileError(f"{path} line {line}: {error} Trace again.") from error


def _read_tokens(path: Path) -> dict[Place, dict[str, Any]]:
    """Return the columns of each cell's rows; the rows of a cell stand together, its tokens one after the other."""
    table = _table(path, TOKENS_COLUMNS)
    if table.height == 0:
        return {}
    layer, stage = table["layer"].fill_null(-1).to_list(), table["stage"].to_list()
    numbers = {n: table[n].cast(float).fill_null(math.nan).to_numpy() for n in TOKENS_COLUMNS if n != "stage"}
    changes = [i for i in range(1, len(stage)) if stage[i] != stage[i - 1] or layer[i] != layer[i - 1]]
    found: dict[Place, dict[str, Any]] = {}
    for start, end in pairwise([0, *changes, len(stage)]):
        place = (None if layer[start] < 0 else layer[start], _stage(path, start + 2, stage[start]))
        rows = {name: column[start:end] for name, column in numbers.items()}
        in_order = rows["token"][0] + np.arange(end - start)
        if place in found or (rows["token"] != in_order).any() or (rows["count"] != rows["count"][0]).any():
            lines = f"lines {start + 2} to {end + 1}"
            raise FileError(f"{path} {lines}: a cell's tokens must stand once, in order, with one count. Trace again.")
        found[place] = rows
    return found


def _table(path: Path, names: Sequence[str]) -> pl.DataFrame:
    """Read a CSV with exactly these columns, or a FileError that names the line and column."""
    import polars as pl

    data = _bytes(path)
    try:
        text = pl.read_csv(io.BytesIO(data), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise FileError(f"{path} is not a CSV table: {str(error).splitlines()[0]}. Trace again.") from error
    if tuple(text.columns) != tuple(names):
        needed = ", ".join(names)
        raise FileError(f"{path} line 1: columns {', '.join(text.columns)}; {needed} were needed. Trace again.")
    columns = []
    for name in names:
        kind = pl.Int64 if name in WHOLE else pl.String if name in ("stage", "scope") else pl.Float64
        column = text[name].cast(kind, strict=False)
        wrong = (column.is_null() & text[name].is_not_null()) | (column.is_null() & pl.Series([name in NEEDED]))
        if kind == pl.Int64:
            wrong = wrong | (column < 0) | (column > MOST_LAYERS if name == "layer" else pl.Series([False]))
        lines = wrong.fill_null(False).arg_true()
        if len(lines):
            line = lines[0]
            what = "a whole number from 0" if kind == pl.Int64 else "a number" if kind == pl.Float64 else "a name"
            where = f"{path} line {line + 2}, column {name}"
            raise FileError(f"{where}: found {text[name][line]!r}, {what} was needed. Trace again.")
        columns.append(column)
    return pl.DataFrame(columns)
