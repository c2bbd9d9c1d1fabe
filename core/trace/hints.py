"""Find the hints in one trace: NaN, spikes and falls along the layers, massive activations, outliers of a column.

A hint says where to look; it never proves a bug (proof/judge_pair.py and proof/check.py do). Whole-model stages and
detail stages take part in NaN and massive only: a spike must be a cell of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from core.model.stages import GRID, Place, place_order, place_text, scope_positions
from core.system.numbers import short
from core.trace.finding import Finding, FindingKind
from core.trace.grid import Cells, divided, falls, ratios, stats_at
from core.trace.marks import FALL_RATIO, WATCH_RATIO
from core.trace.record import Trace
from core.trace.stats import (
    MASSIVE_CHANNELS,
    MASSIVE_MULTIPLE,
    MASSIVE_SIZE,
    Cell,
    Stats,
    TokenStats,
    std_T,
)
from core.trace.token_share import carrier, carrier_phrase, carrier_token, times_text

MAX_Z, MAX_HIDDEN, MAX_FALLS, MAX_MASSIVE = 3, 3, 3, 4  # findings of a kind; the rest shows in the grid
Z_LIMIT, Z_LAYERS = 6.0, 8  # fewer layers have no meaningful median


@dataclass(frozen=True, slots=True)
class _Spike:
    """A spike and what belongs to it."""

    place: Place
    before: tuple[Place, ...]  # precursors
    after: tuple[Place, ...]   # downstream


@dataclass(frozen=True, slots=True)
class _View:
    """The cells at one scope, merged once."""

    cells: Cells
    scope: str
    threshold: float
    stats: Mapping[Place, Stats]
    times: Mapping[Place, float]


def find_hints(source: Trace | Cells, *, threshold: float = 10.0, scope: str = "all") -> tuple[Finding, ...]:
    """Find the hints at a scope: NaN or Inf, ratio, massive, z, in this order; each by layer and stage.

    Ratio: each spike with its precursors and what is downstream; then spikes of single positions that fade at scope
    all; then falls.
    """
    cells = source.cells if isinstance(source, Trace) else source
    stats = stats_at(cells, scope)
    view = _View(cells, scope, threshold, stats, ratios(stats))
    spikes = _spikes(view)
    hints = [*_find_nan(view), *(hint for spike in spikes for hint in _tell_spike(view, spike))]
    if scope == "all":
        hints += _find_hidden(view, spikes)
    hints += [*_find_falls(view), *_find_massive(view)]
    return (*hints, *_find_outliers(view, {hint.place for hint in hints}))


def _spikes(view: _View) -> list[_Spike]:
    """Group the places above the threshold, in order of computation: each first one with what it carries along."""
    firsts: list[tuple[Place, list[Place]]] = []
    outputs = {layer: s.std for (layer, stage), s in view.stats.items() if stage == "output" and layer is not None}
    for place in sorted((p for p, times in view.times.items() if times > view.threshold), key=place_order):
        if firsts and _is_carried(firsts[-1][0], place, outputs):
            firsts[-1][1].append(place)
        else:
            firsts.append((place, []))
    return [_Spike(place, _precursors(view, place), tuple(after)) for place, after in firsts]


def _is_carried(spike: Place, place: Place, outputs: Mapping[int, float | None]) -> bool:
    """Say whether place follows from the spike: the same layer, or every residual between them is still raised.

    A residual that the source does not have counts as raised: ONE first place is named, not two.
    """
    first, last = spike[0] or 0, place[0] or 0
    rises = (divided(outputs.get(layer), outputs.get(first - 1)) for layer in range(first, last))
    return all(rise is None or rise >= WATCH_RATIO for rise in rises)


def _precursors(view: _View, spike: Place) -> tuple[Place, ...]:
    before = ((spike[0], stage) for stage in GRID[: GRID.index(spike[1])])
    return tuple(p for p in before if WATCH_RATIO <= view.times.get(p, 0.0) <= view.threshold)


def _tell_spike(view: _View, spike: _Spike) -> Iterator[Finding]:
    over = f"std ratio to the layer before > {view.threshold:g}"
    between = f"std ratio to the layer before {WATCH_RATIO:g} to {view.threshold:g}, before the spike"
    yield _ratio(view, spike.place, FindingKind.RATIO, over)
    for place in spike.before:
        yield _ratio(view, place, FindingKind.PRECURSOR, between, f", before the spike at {spike.place[1]}")
    for place in spike.after:
        why = f", downstream of {place_text(spike.place)}"
        yield _ratio(view, place, FindingKind.DOWNSTREAM, f"{over}, after the spike", why)


def _ratio(view: _View, place: Place, kind: FindingKind, rule: str, why: str = "") -> Finding:
    """Tell a cell's ratio and which token carries it (for a fall: carried the layer before)."""
    layer, stage = place
    assert layer is not None
    before = (layer - 1, stage)
    found = carrier(view.cells, before if kind is FindingKind.FALL else place, place, view.scope)
    stats, token = view.stats[place], carrier_token(found)
    phrase = carrier_phrase(found, view.scope, carried=f"layer {layer - 1}" if kind is FindingKind.FALL else None)
    if kind is FindingKind.RATIO and found is not None:
        phrase += found.verdict()
    sentence = f"{stage} is {times_text(view.times[place])} x layer {layer - 1}{why}; {phrase}"
    is_peak = token is not None and token == stats.peak_token and kind is not FindingKind.FALL
    return Finding(kind, "hint", layer, stage, view.scope, token, stats.peak_channel if is_peak else None,
                   view.times[place], view.stats[before].std, rule, sentence)


def _find_falls(view: _View) -> Iterator[Finding]:
    places = sorted(falls(view.stats, view.times), key=place_order)
    for place in places[:MAX_FALLS]:
        yield _ratio(view, place, FindingKind.FALL, f"std ratio to the layer before < {FALL_RATIO:g}")


def _find_nan(view: _View) -> Iterator[Finding]:
    """Name the first place with NaN or Inf; the later ones follow from it."""
    broken = sorted((p for p, s in view.stats.items() if s.nan or s.inf), key=place_order)
    for place in broken[:1]:
        stats = view.stats[place]
        token, channel = _first_broken(view.cells[place], view.scope, stats)
        values = f" of {stats.count} values" if stats.count is not None else ""
        where = "which token has them is unknown" if token is None else f"the first at token {token}" + (
            f", channel {channel}" if channel is not None else "")
        later = f"; {len(broken) - 1} cells after it have them too" if len(broken) > 1 else ""
        sentence = f"{place[1]} has {stats.nan or 0} NaN and {stats.inf or 0} Inf{values}, {where}{later}"
        measured, rule = float((stats.nan or 0) + (stats.inf or 0)), "NaN or Inf count > 0"
        yield Finding(FindingKind.NAN, "hint", *place, view.scope, token, channel, measured, None, rule, sentence)


def _first_broken(cell: Cell, scope: str, stats: Stats) -> tuple[int | None, int | None]:
    """Return the token and channel of the first NaN or Inf; the channel of an Inf is not kept."""
    if not isinstance(cell, TokenStats):
        return stats.nan_token, stats.nan_channel
    finite_T, rows = cell.finite_T, cell.rows
    for token in scope_positions(scope, cell.first + cell.n_token):
        i = token - cell.first
        if i >= 0 and finite_T[i] < cell.width:
            return token, int(rows["nan_channel"][i]) if rows["nan"][i] else None
    return None, None


def _find_massive(view: _View) -> Iterator[Finding]:
    """Name where each massive channel of a token first appears; the residual carries it through later cells."""
    seen: dict[tuple[int, int, int], list[Place]] = {}  # (width, token, channel) -> places
    largest: dict[Place, tuple[int, int, int, float]] = {}  # (width, token, channel, value)
    for place in sorted(view.cells, key=place_order):
        cell = view.cells[place]
        if not isinstance(cell, TokenStats) or cell.massive is None:
            continue
        positions = scope_positions(view.scope, cell.first + cell.n_token)
        for token, channel, value in cell.massive.places:
            if token in positions:
                seen.setdefault((cell.width, token, channel), []).append(place)
                if seen[cell.width, token, channel] == [place]:
                    largest.setdefault(place, (cell.width, token, channel, value))
    for place, (width, token, channel, value) in list(largest.items())[:MAX_MASSIVE]:
        yield _massive(view, place, (token, channel, value), seen[width, token, channel][-1])


def _massive(view: _View, place: Place, largest: tuple[int, int, float], last: Place) -> Finding:
    """Tell a massive value as (token, channel, value); last: the last place where the channel is massive."""
    (token, channel, value), cell = largest, view.cells[place]
    assert isinstance(cell, TokenStats) and cell.massive is not None
    median = cell.massive.median
    times = f"{times_text(abs(value) / median)} x the median |x|" if median > 0 else "where the median |x| is 0"
    later = f"; the same channel is massive up to {place_text(last)}" if last != place else ""
    sentence = f"{place[1]} reaches {short(value)}, {times}; token {token} carries it, in channel {channel}{later}"
    rule = (f"|x| > {MASSIVE_SIZE:g} and > {MASSIVE_MULTIPLE:g} x the median |x|, "
            f"in at most {MASSIVE_CHANNELS} channels")
    return Finding(FindingKind.MASSIVE, "hint", *place, view.scope, token, channel, value, median, rule, sentence)


def _find_outliers(view: _View, named: set[Place]) -> list[Finding]:
    """Name the cells farthest from their column's median of log std, but for those that have a finding."""
    found: list[tuple[float, Place, float]] = []
    for stage in GRID:
        column = {p: s.std for p, s in view.stats.items() if p[1] == stage and s.std and math.isfinite(s.std)}
        logs = np.log(np.array(list(column.values())))
        if len(logs) < Z_LAYERS:
            continue
        median = float(np.median(logs))
        mad = float(np.median(np.abs(logs - median)))
        if mad > 0:
            z = 0.6745 * (logs - median) / mad
            found += [(float(v), p, math.exp(median)) for v, p in zip(z, column, strict=True) if abs(v) > Z_LIMIT]
    far = sorted((f for f in found if f[1] not in named), key=lambda f: (-abs(f[0]), place_order(f[1])))[:MAX_Z]
    return [_outlier(view, *f) for f in sorted(far, key=lambda f: place_order(f[1]))]


def _outlier(view: _View, z: float, place: Place, median: float) -> Finding:
    found = carrier(view.cells, place, None, view.scope)
    sentence = (f"{place[1]} has std {short(view.stats[place].std)} where its column's median is {short(median)}: "
                f"robust z {z:.1f}; {carrier_phrase(found, view.scope)}")
    rule = f"|0.6745 (x - median) / MAD| of log std over the column > {Z_LIMIT:g}"
    return Finding(FindingKind.Z, "hint", *place, view.scope, carrier_token(found), None, z, median, rule, sentence)


def _find_hidden(view: _View, spikes: list[_Spike]) -> list[Finding]:
    """Name spikes of single positions that fade at scope all: a position's first one, the strongest places."""
    over: dict[int, dict[Place, float]] = {}  # position -> its places above the threshold
    for place in sorted(view.times, key=place_order):
        for token, times in _position_ratios(view.cells, place, view.threshold):
            over.setdefault(token, {})[place] = times
    strongest: dict[Place, tuple[float, int, int]] = {}  # (ratio, position, number of positions)
    for token, places in over.items():
        first = _first_hidden(view, spikes, token, places)
        if first is not None:
            best = strongest.get(first, (0.0, token, 0))
            strongest[first] = (*max(best[:2], (places[first], token), key=lambda b: b[0]), best[2] + 1)
    chosen = sorted(strongest, key=lambda p: -strongest[p][0])[:MAX_HIDDEN]
    return [_hidden(view, p, *strongest[p]) for p in sorted(chosen, key=place_order)]


def _position_ratios(cells: Cells, place: Place, threshold: float) -> Iterator[tuple[int, float]]:
    layer, stage = place
    cell, before = cells[place], cells[(layer or 0) - 1, stage]
    if isinstance(cell, TokenStats) and isinstance(before, TokenStats) and cell.n_token == before.n_token:
        with np.errstate(divide="ignore", invalid="ignore"):
            times_T = std_T(cell) / std_T(before)
        for row in np.flatnonzero(np.isfinite(times_T) & (times_T > threshold)):
            yield cell.first + int(row), float(times_T[row])


def _first_hidden(view: _View, spikes: list[_Spike], token: int, places: Mapping[Place, float]) -> Place | None:
    """Return the position's first place that no spike at scope all accounts for."""
    shown = {p for spike in spikes for p in (spike.place, *spike.before, *spike.after)}
    known = [spike.place for spike in spikes if spike.place in places]  # this position takes part in these
    layers = {p[0] for p in known}
    outputs: dict[int, float | None] = {}
    for (layer, stage), cell in view.cells.items() if known else ():
        if stage == "output" and layer is not None:
            stats = cell.at(f"pos:{token}")
            outputs[layer] = stats.std if stats is not None else None
    for place in places:
        carried = any(s[0] is not None and s[0] < (place[0] or 0) and _is_carried(s, place, outputs) for s in known)
        if place not in shown and place[0] not in layers and not carried:
            return place
    return None


def _hidden(view: _View, place: Place, times: float, token: int, n_token: int) -> Finding:
    layer, stage = place
    assert layer is not None
    more = f"; so at {n_token - 1} more position{'s' * (n_token > 2)}" if n_token > 1 else ""
    sentence = (f"{stage} is {times_text(times)} x layer {layer - 1} at token {token}, which carries it, and "
                f"{times_text(view.times[place])} x at scope all: hidden at scope all{more}")
    scope = f"pos:{token}"
    stats, before = view.cells[place].at(scope), view.cells[layer - 1, stage].at(scope)
    assert stats is not None and before is not None
    rule = f"std ratio to the layer before > {view.threshold:g} at one position"
    return Finding(FindingKind.RATIO, "hint", layer, stage, scope, token, stats.peak_channel, times, before.std, rule,
                   sentence)
