"""Turn cells into the flat columns of stats.csv and tokens.csv, and back. It knows no file and no CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from core.model.stages import SCOPES, Place, place_order
from core.system.arrays import Floats, Ints, Rows
from core.trace.metrics import STATS
from core.trace.record import Trace
from core.trace.stats import ROW, Cell, Factors, Massive, ScopeStats, Stats, TokenStats, peaks_of, std_T

VALUES = "values.safetensors"
STATS_COLUMNS = ("layer", "stage", "scope", *(s.name for s in STATS))
TOKENS_COLUMNS = ("layer", "stage", "token", "token_id", *(s.name for s in STATS if s.name != "peak_token"))
WHOLE = ("layer", "token", "token_id", *(s.name for s in STATS if s.is_whole))  # columns of whole numbers
TEXT = ("stage", "scope")
NEEDED = ("stage", "scope", "token")  # columns that no row leaves empty


def stats_rows(cells: Mapping[Place, Cell]) -> Iterator[tuple[Place, str, Stats]]:
    """Yield every cell at every scope that it has, in order of computation; the logits' one row only at scope last."""
    for place in sorted(cells, key=place_order):
        cell = cells[place]
        scopes: Sequence[str] = SCOPES
        if isinstance(cell, ScopeStats):
            scopes = [s for s in SCOPES if s in cell.scopes] + sorted(set(cell.scopes) - set(SCOPES))
        elif place[1] == "logits":
            scopes = ("last",)
        for scope in scopes:
            stats = cell.at(scope)
            if stats is not None:
                yield place, scope, stats


def tokens_columns(trace: Trace) -> dict[str, list[str | None] | Floats]:
    """Return tokens.csv as columns; numbers as float64 with NaN for "none" (no value of a row is NaN)."""
    parts: dict[str, list[Floats]] = {name: [np.empty(0)] for name in TOKENS_COLUMNS if name != "stage"}
    stages: list[str | None] = []
    ids = np.array([token.id for token in trace.tokens], dtype=np.float64)
    for place in sorted(trace.cells, key=place_order):
        cell = trace.cells[place]
        if not isinstance(cell, TokenStats):
            continue
        stages += [place[1]] * cell.n_token
        position_T = cell.first + np.arange(cell.n_token)
        known = position_T < len(ids)
        parts["layer"].append(np.full(cell.n_token, math.nan if place[0] is None else place[0]))
        parts["token"].append(position_T.astype(np.float64))
        parts["token_id"].append(np.where(known, ids[np.minimum(position_T, len(ids) - 1)], math.nan)
                                 if len(ids) else np.full(cell.n_token, math.nan))
        for name, column in token_columns(cell).items():
            parts[name].append(column)
    joined = {name: np.concatenate(parts[name]) for name in parts}
    return {name: stages if name == "stage" else joined[name] for name in TOKENS_COLUMNS}


def token_stats(
    columns: Mapping[str, Floats], extras: Mapping[str, object], published: Mapping[str, Stats],
) -> TokenStats:
    """Rebuild a cell from its rows of tokens.csv; its per-token std and l2 come back to the last bit."""
    first, factors = int(columns["token"][0]), _factors(extras.get("factors"))
    peaks = peaks_of(_triples(extras.get("top")), _massive(extras.get("massive")), factors, first)
    return TokenStats(int(columns["count"][0]), first, rows_of(columns)[None], 0, peaks, published=published)


def channel_extras(cells: Mapping[Place, Cell]) -> dict[Place, dict[str, object]]:
    """Return what the tables have no column for: top channels, massive values, factors of a product, samples."""
    found: dict[Place, dict[str, object]] = {}
    for place in sorted(cells, key=place_order):
        cell = cells[place]
        if isinstance(cell, TokenStats):
            extras = {"top": cell.top, "massive": cell.massive, "factors": cell.factors}
            found[place] = {name: value for name, value in extras.items() if value}
        elif cell.samples:
            found[place] = {"samples": cell.samples}
    return found


def scope_stats(published: Mapping[str, Stats], extras: Mapping[str, object]) -> ScopeStats:
    """Rebuild a cell that has no rows of tokens."""
    return ScopeStats(published, _triples(extras.get("samples")))


def _triples(value: object) -> tuple[tuple[int, int, float], ...]:
    assert value is None or isinstance(value, list)
    return tuple((int(a), int(b), float(c)) for a, b, c in value or ())


def _massive(value: object) -> Massive | None:
    return Massive(float(value["median"]), _triples(value["places"])) if isinstance(value, dict) else None


def _factors(value: object) -> Factors | None:
    if not isinstance(value, dict):
        return None
    correlation = None if value["correlation"] is None else float(value["correlation"])
    left, right = float(value["left"]), float(value["right"])
    return Factors(int(value["token"]), int(value["channel"]), left, right, correlation)


def token_columns(cell: TokenStats) -> dict[str, Floats]:
    """Return each token's statistics, a column [T] of each but peak_token; NaN for "none" (no statistic is NaN)."""
    rows = cell.rows
    has, bad = cell.finite_T > 0, rows["nan"] > 0
    finite = {
        "mean": rows["mean"], "min": rows["min"], "max": rows["max"], "l2": np.sqrt(rows["sumsq"]),
        "absmax": np.maximum(np.abs(rows["min"]), np.abs(rows["max"])), "peak_channel": rows["peak_channel"],
    }
    return {
        **{name: np.where(has, column, math.nan) for name, column in finite.items()},
        **{name: rows[name].astype(np.float64) for name in ("nan", "inf", "zero")},
        "count": np.full(len(has), float(cell.width)), "std": std_T(cell),
        "nan_token": np.where(bad, cell.first + np.arange(len(bad)), math.nan),
        "nan_channel": np.where(bad, rows["nan_channel"], math.nan),
    }


def rows_of(columns: Mapping[str, Floats]) -> Rows:
    """Return the rows [T] that give token_columns' columns again; std and l2 to the last bit."""
    whole = {name: np.nan_to_num(columns[name], nan=-1.0).astype(np.int64)
             for name in ("nan", "inf", "zero", "peak_channel", "nan_channel")}
    n_T = int(columns["count"][0]) - whole["nan"] - whole["inf"]
    has = n_T > 0
    l2_T = np.where(has, columns["l2"], 0.0)
    found = whole | {
        "mean": np.where(has, columns["mean"], 0.0), "m2": _squares(np.nan_to_num(columns["std"]), n_T),
        "min": np.where(has, columns["min"], math.inf), "max": np.where(has, columns["max"], -math.inf),
        "sumsq": _nudged(l2_T * l2_T, l2_T, np.sqrt),
    }
    rows = np.empty(len(n_T), ROW)
    for name in ROW.names or ():
        rows[name] = found[name]
    return rows


def _squares(std_T: Floats, n_T: Ints) -> Floats:
    """Return m2 such that sqrt(m2 / (n - 1)) is std again, to the last bit."""
    below_T = np.maximum(n_T - 1, 1)
    return _nudged(std_T * std_T * below_T, std_T, lambda m2_T: np.sqrt(m2_T / below_T))


def _nudged(guess: Floats, wanted: Floats, back: Callable[[Floats], Floats]) -> Floats:
    """Move each guess by single bits until back(guess) is what is wanted; rounding takes one or two of the eight."""
    best, up, down = guess, guess, guess
    for _ in range(8):
        wrong = back(best) != wanted
        if not wrong.any():
            break
        up, down = np.nextafter(up, math.inf), np.maximum(np.nextafter(down, -math.inf), 0.0)
        for other in (up, down):
            best = np.where((back(best) != wanted) & (back(other) == wanted), other, best)
    return best
