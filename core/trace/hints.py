"""Tell the hints in one trace: NaN, spikes, massive activations, overflow, steps, falls, outliers of a column.

A hint says where to look; it never proves a bug (proof/judge_pair.py and proof/check.py do). Whole-model stages and
detail stages take part in NaN, massive and overflow only: a spike (spikes.py) must be a cell of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from core.model.stages import GRID_STAGES, Place, place_order, place_text, scope_positions
from core.system.numbers import short
from core.trace.finding import FALL_RATIO, UNUSUAL, WATCH_RATIO, Finding, FindingKind
from core.trace.grid import Cells, falls, kind_of, place_before
from core.trace.massive import find_massive
from core.trace.record import Trace
from core.trace.spikes import Hidden, Spike, View, find_hidden, find_spikes, view_of
from core.trace.stats import Cell, Stats, TokenStats
from core.trace.token_share import TokenShare, largest_share, main_token, share_phrase, times_text

MAX_Z, MAX_FALLS, MAX_STEPS = 3, 3, 3  # findings of a kind; the rest shows in the grid
Z_LIMIT, Z_LAYERS = 6.0, 8  # fewer layers have no meaningful median
# the residual grows: its first layers are always far
JUDGED = tuple(stage for stage in GRID_STAGES if stage != "output")
FLOAT16_MAX = 65504.0


def find_hints(source: Trace | Cells, *, threshold: float = 10.0, scope: str = "all") -> tuple[Finding, ...]:
    """Find the hints at a scope, the one to look at first.

    NaN or Inf; spikes that do not look like the model, then those that do, each with its precursors and what is
    downstream of it; massive channels; spikes of single positions that fade at scope all; overflow; steps; falls; z.
    """
    view = view_of(source, threshold, scope)
    spikes = find_spikes(view)
    hints = [*_find_nan(view), *(hint for spike in spikes for hint in _tell_spike(view, spike))]
    hints += find_massive(view, spikes)
    if scope == "all":
        hints += [_tell_hidden(view, hidden) for hidden in find_hidden(view, spikes)]
    hints += [*_find_overflow(view), *_tell_steps(view), *_find_falls(view)]
    return (*hints, *_find_outliers(view, {hint.place for hint in hints}))


def _tell_spike(view: View, spike: Spike) -> Iterator[Finding]:
    yield _ratio(view, spike.place, FindingKind.RATIO, _rule(view, spike.place), told=spike)
    between = f"std ratio to the layer before {WATCH_RATIO:g} to {view.threshold:g}, before the spike"
    for place in spike.before:
        yield _ratio(view, place, FindingKind.PRECURSOR, between, f", before the spike at {spike.place[1]}")
    for place, how in spike.later:
        why = f", {how}{' of' * (how is FindingKind.DOWNSTREAM)} {place_text(spike.place)}"
        yield _ratio(view, place, how, f"{_rule(view, place)}, after the spike", why)


def _rule(view: View, place: Place) -> str:
    over = "the highest layer before" if place[1] == "output" else "its column's median"
    return f"std ratio to the layer before > {view.threshold:g}, and {UNUSUAL:g} x {over}"


def _ratio(view: View, place: Place, kind: FindingKind, rule: str, why: str = "", told: Spike | None = None) -> Finding:
    """Tell a cell's ratio and which tokens carry it (for a fall: carried the layer before)."""
    layer, stage = place
    before = place_before(place, view.kinds)
    assert layer is not None and before is not None
    found = told.carrier if told is not None else largest_share(
        view.cells, before if kind is FindingKind.FALL else place, view.scope, view.first, (place, before))
    stats, token = view.stats[place], main_token(found)
    phrase = share_phrase(found, view.scope, carried=f"layer {before[0]}" if kind is FindingKind.FALL else None)
    if told is not None and found is not None:
        phrase += _verdict(view, told, found)
    sentence = f"{stage} is {times_text(view.times[place])} x layer {before[0]}{why}; {phrase}"
    is_peak = token is not None and token == stats.peak_token and kind is not FindingKind.FALL
    return Finding(kind, "hint", layer, stage, view.scope, token, stats.peak_channel if is_peak else None,
                   view.times[place], view.stats[before].std, rule, sentence)


def _verdict(view: View, spike: Spike, found: TokenShare) -> str:
    """Say what kind of spike the shares speak for; "" where they do not speak."""
    if spike.is_known:
        return ": looks like the model"
    if found.without is None:
        return ""
    if not found.is_main or found.without >= WATCH_RATIO:
        return ": not one token's doing"
    if max(found.tokens) >= view.first:
        return ": one token's doing, and not the first's"
    return ": the first token's doing, yet not in few channels of a feed-forward stage"


def _tell_hidden(view: View, hidden: Hidden) -> Finding:
    (layer, stage), scope = hidden.place, f"pos:{hidden.token}"
    before = place_before(hidden.place, view.kinds)
    assert layer is not None and before is not None
    more = f"; so at {hidden.n_token - 1} more position{'s' * (hidden.n_token > 2)}" if hidden.n_token > 1 else ""
    times = view.times.get(hidden.place)
    at_all = f", and {times_text(times)} x at scope all" if times is not None else ""
    known = ", and looks like the model" if hidden.is_known else ""
    sentence = (f"{stage} is {times_text(hidden.times)} x layer {before[0]} at token {hidden.token}, which carries it"
                f"{at_all}: hidden at scope all{known}{more}")
    stats, low = view.cells[hidden.place].at(scope), view.cells[before].at(scope)
    assert stats is not None and low is not None
    return Finding(FindingKind.HIDDEN, "hint", layer, stage, scope, hidden.token, stats.peak_channel, hidden.times,
                   low.std, f"{_rule(view, hidden.place)}, at one position", sentence)


def _find_overflow(view: View) -> Iterator[Finding]:
    """Name the first place that float16 cannot hold; the residual carries it through later cells."""
    over = [place for place, stats in view.stats.items() if stats.absmax is not None and stats.absmax > FLOAT16_MAX]
    for place in sorted(over, key=place_order)[:1]:
        stats = view.stats[place]
        where = "" if stats.peak_token is None else (
            f"; token {stats.peak_token} carries it, in channel {stats.peak_channel}")
        later = f"; {len(over) - 1} cells after it do too" if len(over) > 1 else ""
        sentence = f"{place_text(place)} reaches {short(stats.absmax)}: Inf in float16{where}{later}"
        yield Finding(FindingKind.OVERFLOW, "hint", *place, view.scope, stats.peak_token, stats.peak_channel,
                      stats.absmax, FLOAT16_MAX, f"|x| > {FLOAT16_MAX:g}, the largest of float16", sentence)


def _tell_steps(view: View) -> Iterator[Finding]:
    for place, reason in list(view.steps.items())[:MAX_STEPS]:
        before = place_before(place, view.kinds)
        assert before is not None
        low = f", yet {reason}: layer {before[0]} is the low one"
        rule = f"std ratio to the layer before > {view.threshold:g}, and no spike"
        yield _ratio(view, place, FindingKind.STEP, rule, low)


def _find_falls(view: View) -> Iterator[Finding]:
    places = sorted(falls(view.stats, view.times, view.kinds), key=place_order)
    for place in places[:MAX_FALLS]:
        yield _ratio(view, place, FindingKind.FALL, f"std ratio to the layer before < {FALL_RATIO:g}")


def _find_nan(view: View) -> Iterator[Finding]:
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
    for token in scope_positions(scope, cell.first + cell.n_token):
        row = token - cell.first
        if row >= 0 and (cell.rows["nan"][row] or cell.rows["inf"][row]):
            return token, int(cell.rows["nan_channel"][row]) if cell.rows["nan"][row] else None
    return None, None


def _find_outliers(view: View, named: set[Place]) -> list[Finding]:
    """Name the cells farthest from their column's median of log std, but for those that have a finding."""
    found: list[tuple[float, Place, float]] = []
    columns: dict[tuple[str, str], dict[Place, float]] = {}
    for (layer, stage), s in view.stats.items():
        if layer is not None and stage in JUDGED and s.std and 0 < s.std < math.inf:
            columns.setdefault((stage, kind_of(layer, stage, view.kinds)), {})[layer, stage] = s.std
    for column in columns.values():
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


def _outlier(view: View, z: float, place: Place, median: float) -> Finding:
    found = largest_share(view.cells, place, view.scope, view.first)
    sentence = (f"{place[1]} has std {short(view.stats[place].std)} where its column's median is {short(median)}: "
                f"robust z {z:.1f}; {share_phrase(found, view.scope)}")
    rule = f"|0.6745 (x - median) / MAD| of log std over the column > {Z_LIMIT:g}"
    return Finding(FindingKind.Z, "hint", *place, view.scope, main_token(found), None, z, median, rule, sentence)
