"""Read a bundle back: every table checked, numbers as they were written. It writes nothing."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from core.bundle.csv_table import read_table
from core.bundle.manifest import Manifest, check_schema
from core.bundle.tables import STATS_COLUMNS, TOKENS_COLUMNS, VALUES, scope_stats, token_stats
from core.model.stages import Place, parse_stored_scope, place_order, stage_named
from core.system.atomic_folder import MANIFEST
from core.system.errors import FileError, UsageError
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES, TABLE_BYTES
from core.system.regular_file import read_file
from core.trace.record import Trace
from core.trace.stats import Cell, Stats
from core.trace.values_file import open_values

_WHOLE = "A whole bundle was needed; trace again with --out."


@np.errstate(all="ignore")  # the square of what a damaged table says may be beyond every float
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
            found, extras = rows.get(place), channels.get(place, {})
            cells[place] = token_stats(found, extras, scopes) if found else scope_stats(scopes, extras)
    except (AssertionError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
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
        return read_file(path, DOCUMENT_BYTES if path.suffix == ".json" else TABLE_BYTES, _WHOLE)
    except FileError as error:
        if path.name == "stats.csv" and (path.parent / "verdict.json").exists():
            raise FileError(f"{path.parent} holds a verdict and no single trace. Give the bundle inside it: a, b or "
                            "trace.") from error
        raise


def _check_sha256(path: Path, manifest: Manifest) -> None:
    wanted = (manifest.get("sha256", dict) or {}).get(path.name)
    found = hashlib.sha256(_bytes(path)).hexdigest()
    if found != wanted:
        raise FileError(f"{path} was changed after it was written: its sha256 is {found[:12]}, "
                        f"{MANIFEST} says {str(wanted)[:12]}. Trace again.")


def _read_stats(path: Path) -> dict[Place, dict[str, Stats]]:
    table = read_table(path, _bytes(path), STATS_COLUMNS)
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
    table = read_table(path, _bytes(path), TOKENS_COLUMNS)
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
