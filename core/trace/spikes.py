"""Find the spikes of one trace, what each carries along, and which look like the model. The sentences: hints.py.

A spike is a grid cell far above the layer before and above its column (grid.why_step). The first of those that belong
together is the cause that is named; the rest are downstream of it, or come after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.model.stages import GRID_STAGES, PREVIOUS, STAGES, Place, place_order
from core.system.arrays import Floats
from core.trace.finding import UNUSUAL, WATCH_RATIO, FindingKind
from core.trace.grid import Cells, divide, kind_of, place_before, ratios, stats_at, why_step
from core.trace.grid import column_of as std_column
from core.trace.record import Trace
from core.trace.stats import Stats, TokenStats, std_T
from core.trace.token_share import FEW_SHARE, TokenShare, first_tokens, largest_share, std_of

BORN = ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out", "output")  # where a model makes a massive activation
ATTENTION = GRID_STAGES[: GRID_STAGES.index("ffn_norm")]
MAX_HIDDEN = 3  # the rest shows at its position
_INPUTS = {s.name: tuple(i for i in s.inputs if i not in (PREVIOUS, "attn_resid")) for s in STAGES}


@dataclass(frozen=True, slots=True)
class View:
    """The cells at one scope, merged once."""

    cells: Cells
    scope: str
    threshold: float
    kinds: Sequence[str]
    first: int  # how many first tokens the prompt has
    stats: Mapping[Place, Stats]
    times: Mapping[Place, float]
    steps: Mapping[Place, str]  # far above the layer before, yet no spike: why


@dataclass(frozen=True, slots=True)
class Spike:
    """A spike and what belongs to it."""

    place: Place
    carrier: TokenShare | None  # None without per-token values
    is_known: bool           # looks like the model
    is_raising: bool         # its layer raises the carriers' residual: an activation is made, not passed on
    before: tuple[Place, ...]                 # precursors
    later: tuple[tuple[Place, FindingKind], ...] = ()  # with how: downstream or after

    @property
    def places(self) -> set[Place]:
        """Its own place and those that are told with it."""
        return {self.place, *self.before, *(place for place, _ in self.later)}


@dataclass(frozen=True, slots=True)
class Hidden:
    """A spike of one position that fades at the scope; n_token: how many positions have their first one there."""

    place: Place
    token: int
    times: float
    n_token: int
    is_known: bool


def view_of(source: Trace | Cells, threshold: float, scope: str) -> View:
    """Merge the cells at the scope and tell spikes from steps."""
    if isinstance(source, Trace):
        cells, kinds, first = source.cells, source.layer_kinds, first_tokens([t.id for t in source.tokens])
    else:
        cells, kinds, first = source, (), 1
    stats = stats_at(cells, scope)
    times = ratios(stats, kinds)
    high = sorted((place for place, multiple in times.items() if multiple > threshold), key=place_order)
    reasons = {place: why_step(std_column(stats, place, kinds), place) for place in high}
    return View(cells, scope, threshold, kinds, first, stats, times, {p: why for p, why in reasons.items() if why})


def find_spikes(view: View) -> list[Spike]:
    """Group the spikes by what they follow from: those that do not look like the model first, then by computation.

    Of those that do, one that raises the residual comes before one that only passes through.
    """
    roots: list[Spike] = []
    later: dict[Place, list[tuple[Place, FindingKind]]] = {}
    high = (p for p, multiple in view.times.items() if multiple > view.threshold and p not in view.steps)
    for place in sorted(high, key=place_order):
        spike = _spike(view, place)
        host = _host(view, roots, spike)
        if host is None:
            roots.append(spike)
        else:
            later.setdefault(host[0], []).append((place, host[1]))
    whole = [replace(s, later=tuple(later.get(s.place, ()))) for s in roots]
    return sorted(whole, key=lambda s: (s.is_known, s.is_known and not s.is_raising, place_order(s.place)))


def looks_like_the_model(found: TokenShare | None, place: Place, first: int) -> bool:
    """Say whether first tokens carry it alone, at a feed-forward stage, in few channels: a massive activation."""
    return (found is not None and found.is_main and max(found.tokens) < first and place[1] in BORN
            and found.channel_share > FEW_SHARE and (found.without is None or found.without < WATCH_RATIO))


def _spike(view: View, place: Place) -> Spike:
    found = largest_share(view.cells, place, view.scope, view.first, (place, place_before(place, view.kinds)))
    before = ((place[0], stage) for stage in GRID_STAGES[: GRID_STAGES.index(place[1])])
    precursors = tuple(p for p in before if WATCH_RATIO <= view.times.get(p, 0.0) <= view.threshold)
    raising = _is_raised(view, [(place[0], "output")], (place[0] or 0) - 1, _tokens(found))
    return Spike(place, found, looks_like_the_model(found, place, view.first), raising, precursors)


def _host(view: View, roots: Sequence[Spike], spike: Spike) -> tuple[Place, FindingKind] | None:
    """Find the latest spike that this one follows from, and how; None for one of its own."""
    for root in reversed(roots):
        if is_downstream(view, root, spike.place, _tokens(spike.carrier)):
            return root.place, FindingKind.DOWNSTREAM
    if spike.is_raising:
        return None
    for root in reversed(roots):
        mine, its = _tokens(spike.carrier), _tokens(root.carrier)
        same = mine is its is None or (mine is not None and its is not None and mine <= its)
        if same and (spike.is_known or not root.is_known):
            return root.place, FindingKind.AFTER
    return None


def is_downstream(view: View, root: Spike, place: Place, tokens: frozenset[int] | None) -> bool:
    """Say whether a later place follows from the spike, at the tokens that carry it there (None: all at the scope).

    In its own layer: what is computed from it. Beyond: the spike's layer raised these tokens' residual, and every one
    in between is still raised.
    """
    (layer, stage), (last, late), its = root.place, place, _tokens(root.carrier)
    assert layer is not None and last is not None
    if its is not None and (tokens is None or not tokens <= its):
        return False
    if last == layer and _feeds(stage, late):
        return True
    crosses = [(layer, "attn_resid")] if stage in ATTENTION else []
    if last == layer:
        return late not in ATTENTION and _is_raised(view, crosses, layer - 1, tokens)
    if its is None and tokens is not None:
        return False  # a spike of every token has no one token as its doing
    known = [place for place in crosses if place in view.cells]
    return _is_raised(view, known + [(i, "output") for i in range(layer, last)], layer - 1, tokens)


def _feeds(early: str, late: str) -> bool:
    """Say whether a layer's stage is computed from an earlier one, but for what the residual passes on."""
    return any(i == early or _feeds(early, i) for i in _INPUTS[late])


def _is_raised(view: View, residual: Collection[Place], base: int, tokens: frozenset[int] | None) -> bool:
    """Say whether each residual is 3 x the output of the base layer or more; one that is not known is not."""
    low = _level(view, (base, "output"), tokens)
    rises = [divide(_level(view, place, tokens), low) for place in residual]
    return bool(rises) and all(rise is not None and rise >= WATCH_RATIO for rise in rises)


def _level(view: View, place: Place, tokens: frozenset[int] | None) -> float | None:
    cell = view.cells.get(place)
    if tokens is not None and isinstance(cell, TokenStats):
        return std_of(cell, tokens)
    stats = view.stats.get(place)
    return stats.std if stats is not None else None


def _tokens(found: TokenShare | None) -> frozenset[int] | None:
    """The tokens that carry most of a spike; None where it is spread over them, or where they are unknown."""
    return frozenset(found.tokens) if found is not None and found.is_main else None


def find_hidden(view: View, spikes: Sequence[Spike]) -> list[Hidden]:
    """Find the spikes of single positions that fade at scope all: a position's first, the strongest places first."""
    grid = ((p, c) for p, c in view.cells.items() if p[0] is not None and p[1] in GRID_STAGES)
    std = {place: std_T(cell) for place, cell in grid if isinstance(cell, TokenStats)}
    shown = {place for spike in spikes for place in spike.places}
    firsts: dict[int, tuple[Place, float]] = {}  # position -> its first place and the multiple there
    for place in sorted(std.keys() - shown, key=place_order):
        for token, times in _position_spikes(view, std, place):
            if token not in firsts and not any(_accounts(view, spike, place, token) for spike in spikes):
                firsts[token] = (place, times)
    found: dict[Place, Hidden] = {}
    for token, (place, times) in firsts.items():
        same = found.get(place)
        n_token = same.n_token + 1 if same is not None else 1
        if same is not None and same.times >= times:
            token, times = same.token, same.times
        it = largest_share(view.cells, place, f"pos:{token}")
        found[place] = Hidden(place, token, times, n_token, looks_like_the_model(it, place, view.first))
    strongest = sorted(found.values(), key=lambda h: -h.times)[:MAX_HIDDEN]
    return sorted(strongest, key=lambda h: (h.is_known, place_order(h.place)))


def _position_spikes(view: View, std: Mapping[Place, Floats], place: Place) -> Iterator[tuple[int, float]]:
    """Yield the positions at which a place is a spike of its own column and 3 x the layer's median position."""
    before = place_before(place, view.kinds)
    size_T, low_T = std[place], std.get(before) if before is not None else None
    if low_T is None or len(low_T) != len(size_T):
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        times_T = size_T / low_T
        usual = UNUSUAL * np.median(size_T[np.isfinite(size_T)]) if np.isfinite(size_T).sum() > 1 else 0.0
    kind = kind_of(place[0] or 0, place[1], view.kinds)
    column = {layer: x_T for (layer, stage), x_T in std.items() if stage == place[1] and layer is not None
              and len(x_T) == len(size_T) and kind_of(layer, stage, view.kinds) == kind}
    cell = view.cells[place]
    assert isinstance(cell, TokenStats)
    for row in np.flatnonzero(np.isfinite(times_T) & (times_T > view.threshold) & (size_T >= usual)):
        levels = {layer: float(x_T[row]) for layer, x_T in column.items() if x_T[row] > 0}
        if why_step(levels, place) is None:
            yield cell.first + int(row), float(times_T[row])


def _accounts(view: View, spike: Spike, place: Place, token: int) -> bool:
    """Say whether a spike at the scope accounts for one position's at a place."""
    its = _tokens(spike.carrier)
    if its is not None and token not in its:
        return False
    layer, last = spike.place[0] or 0, place[0] or 0
    return layer == last or (layer < last and _is_raised(
        view, [(i, "output") for i in range(layer, last)], layer - 1, frozenset([token])))
