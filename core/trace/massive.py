"""Tell each massive channel of a trace once: where it is born, which token carries it, and where it ends.

It measures none. The residual passes a channel on from layer to layer, so all that reads or writes it shows one and the
same; the inner channels of a feed-forward block that writes it or takes it back belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.model.stages import Place, place_order, place_text, scope_positions
from core.system.numbers import short
from core.trace.finding import Finding, FindingKind
from core.trace.spikes import Spike, View
from core.trace.stats import MASSIVE_CHANNELS, MASSIVE_MULTIPLE, MASSIVE_SIZE, TokenStats
from core.trace.token_share import FEW_SHARE, largest_share, times_text

MAX_MASSIVE = 4  # channels; the rest shows at its place
RESIDUAL = ("embedding", "attn_out", "attn_resid", "ffn_out", "output")  # one width, one set of channels
WRITERS = ("attn_out", "ffn_out")
BLOCK = ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")  # its channels are its own layer's
BORN = 0.5        # of a channel's largest size, from here on: there it is made
TAKEN_BACK = 0.1  # of it, from here on: a writer of the other sign works against it
RULE = f"|x| > {MASSIVE_SIZE:g} and > {MASSIVE_MULTIPLE:g} x the median |x|, in at most {MASSIVE_CHANNELS} channels"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A channel's largest value at a place."""

    place: Place
    token: int
    channel: int
    value: float
    median: float | None  # of the place's |x|, where the value is massive beside it


def find_massive(view: View, spikes: Sequence[Spike]) -> Iterator[Finding]:
    """Name each massive channel of the scope at its birth; with them what a spike that looks like the model writes."""
    residual: dict[int, list[_Seen]] = {}
    others: dict[tuple[Place | str, int], _Seen] = {}
    written = {_written(view, spike) for spike in spikes if spike.is_known and spike.is_raising}
    for seen in _values(view):
        if seen.place[1] in RESIDUAL:
            residual.setdefault(seen.channel, []).append(seen)
        elif seen.median is not None:
            others.setdefault((seen.place if seen.place[1] in BLOCK else seen.place[1], seen.channel), seen)
    lives = [_life(seen) for channel, seen in residual.items()
             if channel in written or any(s.median is not None for s in seen)]
    blocks = {s.place[0] for born, against in lives for s in (born, *against)}
    passed = {born.channel for born, _ in lives}
    inner = [seen for (where, channel), seen in others.items()
             if not (channel in passed if isinstance(where, str) else where[0] in blocks)]
    told = sorted(lives, key=lambda life: (place_order(life[0].place), -abs(life[0].value)))
    for born, against in [*told, *((seen, None) for seen in inner)][:MAX_MASSIVE]:
        yield _massive(view, born, "" if against is None else _source(view, born) + _end(view, born, against))


def _values(view: View) -> Iterator[_Seen]:
    """Yield the largest value of each outstanding channel at each place, in order of computation."""
    for place in sorted(view.cells, key=place_order):
        cell = view.cells[place]
        if isinstance(cell, TokenStats):
            massive = cell.massive.places if cell.massive is not None else ()
            far = {channel for _, channel, _ in massive}
            top = [(token, channel, value) for channel, token, value in cell.top if channel not in far]
            positions = scope_positions(view.scope, cell.first + cell.n_token)
            for token, channel, value in (*massive, *top):
                if token in positions:
                    median = cell.massive.median if cell.massive is not None and channel in far else None
                    yield _Seen(place, token, channel, value, median)


def _written(view: View, spike: Spike) -> int | None:
    """The residual's channel that a spike's layer writes; None where that is not known."""
    cell = view.cells.get((spike.place[0], "ffn_out"))
    if spike.carrier is None or not isinstance(cell, TokenStats):
        return None
    return int(cell.rows["peak_channel"][spike.carrier.peak - cell.first])


def _life(seen: Sequence[_Seen]) -> tuple[_Seen, list[_Seen]]:
    """Find where a channel of the residual is born, and the writers that work against it afterwards."""
    size = max(abs(s.value) for s in seen)
    born = next(s for s in seen if abs(s.value) >= BORN * size)
    return born, [s for s in seen if s.place[1] in WRITERS and place_order(s.place) > place_order(born.place)
                  and s.value * born.value < 0 and abs(s.value) >= TAKEN_BACK * size]


def _source(view: View, born: _Seen) -> str:
    """Say which inner channel writes it, where it is born in a feed-forward block."""
    place = (born.place[0], "ffn_swigl")
    found = largest_share(view.cells, place, f"pos:{born.token}") if place in view.cells else None
    if born.place[1] != "ffn_out" or found is None or found.channel_share <= FEW_SHARE:
        return ""
    inner = view.cells[place].at(f"pos:{born.token}")
    return f"; born in ffn_swigl, channel {inner.peak_channel}" if inner is not None else ""


def _end(view: View, born: _Seen, against: Sequence[_Seen]) -> str:
    """Say where more than half of it has been taken back; "" at a scope whose largest tokens are not kept."""
    left = abs(born.value)
    for s in against if view.scope == "all" else ():
        left -= abs(s.value)
        if left < BORN * abs(born.value):
            return f"; it ends at {place_text(s.place)}, which takes {short(abs(s.value))} of it back"
    return "; no later layer takes it back" if view.scope == "all" else ""


def _massive(view: View, born: _Seen, story: str) -> Finding:
    (layer, stage), median = born.place, born.median
    times = "" if median is None else (
        f", {times_text(abs(born.value) / median)} x the median |x|" if median > 0 else ", where the median |x| is 0")
    sentence = (f"{stage} reaches {short(born.value)}{times}; token {born.token} carries it, in channel "
                f"{born.channel}{story}")
    rule = RULE if median is not None else "the largest channel that a spike which looks like the model writes"
    return Finding(FindingKind.MASSIVE, "hint", layer, stage, view.scope, born.token, born.channel, born.value, median,
                   rule, sentence)
