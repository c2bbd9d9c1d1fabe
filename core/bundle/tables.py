"""Turn cells into the flat columns of stats.csv and tokens.csv, and back. It knows no file and no CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np

from core.model.stages import SCOPES, Place, place_order
from core.trace.record import Trace
from core.trace.stats import (
    COUNTS,
    MOMENTS,
    Cell,
    Factors,
    Floats,
    Ints,
    Massive,
    ScopeStats,
    Stats,
    TokenStats,
    packed,
)
from core.trace.token_share import std_T

STATS = tuple(f.name for f in fields(Stats))
INTEGERS = ("count", "nan", "inf", "zero", "peak_token", "peak_channel", "nan_token", "nan_channel")
STATS_COLUMNS = ("layer", "stage", "scope", *STATS)
TOKENS_COLUMNS = ("layer", "stage", "token", "token_id", *(name for name in STATS if name != "peak_token"))


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
        n_token = len(cell.mean)
        stages += [place[1]] * n_token
        position_T = cell.first + np.arange(n_token)
        known = position_T < len(ids)
        parts["layer"].append(np.full(n_token, math.nan if place[0] is None else place[0]))
        parts["token"].append(position_T.astype(np.float64))
        parts["token_id"].append(np.where(known, ids[np.minimum(position_T, len(ids) - 1)], math.nan)
                                 if len(ids) else np.full(n_token, math.nan))
        for name, column in _token_numbers(cell, position_T).items():
            parts[name].append(column)
    joined = {name: np.concatenate(parts[name]) for name in parts}
    return {name: stages if name == "stage" else joined[name] for name in TOKENS_COLUMNS}


def _token_numbers(cell: TokenStats, position_T: Ints) -> dict[str, Floats]:
    has = cell.width - cell.nan - cell.inf > 0
    finite = {"mean": cell.mean, "min": cell.min, "max": cell.max, "l2": np.sqrt(cell.sumsq),
              "absmax": np.maximum(np.abs(cell.min), np.abs(cell.max)), "peak_channel": cell.peak_channel}
    bad = cell.nan > 0
    return {
        **{name: np.where(has, column, math.nan) for name, column in finite.items()},
        "count": np.full(len(has), float(cell.width)), "std": std_T(cell),
        "nan": cell.nan.astype(np.float64), "inf": cell.inf.astype(np.float64), "zero": cell.zero.astype(np.float64),
        "nan_token": np.where(bad, position_T, math.nan), "nan_channel": np.where(bad, cell.nan_channel, math.nan),
    }


def token_stats(
    columns: Mapping[str, Floats], extras: Mapping[str, object], published: Mapping[str, Stats],
) -> TokenStats:
    """Rebuild a cell from its rows of tokens.csv; its per-token std and l2 come back to the last bit."""
    count = int(columns["count"][0])
    n_T = count - _ints(columns["nan"]) - _ints(columns["inf"])
    has = n_T > 0
    l2_T = np.where(has, columns["l2"], 0.0)
    moments = {"mean": np.where(has, columns["mean"], 0.0), "m2": _squares(np.nan_to_num(columns["std"]), n_T),
               "min": np.where(has, columns["min"], math.inf), "max": np.where(has, columns["max"], -math.inf),
               "sumsq": _nudged(l2_T * l2_T, l2_T, np.sqrt)}
    return TokenStats(
        width=count, first=int(columns["token"][0]), published=published, row=0,
        table=packed([moments[name] for name in MOMENTS], [_ints(columns[name]) for name in COUNTS]),
        top=_triples(extras.get("top")), massive=_massive(extras.get("massive")),
        factors=_factors(extras.get("factors")),
    )


def _ints(column: Floats) -> Ints:
    return np.nan_to_num(column, nan=-1.0).astype(np.int64)


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


def channel_extras(cells: Mapping[Place, Cell]) -> dict[Place, dict[str, object]]:
    """Return what the tables have no column for: top channels, massive values, factors of a product."""
    found: dict[Place, dict[str, object]] = {}
    for place in sorted(cells, key=place_order):
        cell = cells[place]
        if isinstance(cell, TokenStats):
            extras = {"top": cell.top, "massive": cell.massive, "factors": cell.factors}
            found[place] = {name: value for name, value in extras.items() if value}
    return found


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
