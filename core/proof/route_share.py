"""Say of a pair with experts how much of its difference is other experts, and how much other arithmetic.

One side's routes are forced in the other's forward, through the dense weights that its experts are taken from. It
judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from core.model.experts import TIE, Swap, swaps
from core.model.lockstep import run_lockstep
from core.model.stages import ROUTED, ROUTER, Place, place_text
from core.proof.capture import ExternalRun, value_of
from core.proof.distance import relative_l2
from core.proof.explain import Party, side_of
from core.proof.measure_pair import CompareOptions
from core.system.progress import Phase
from core.trace.measures import PROOF_MULTIPLE, Difference, SideName, State
from core.trace.run import Side
from core.trace.taps import Change, chain, patch, record_values

LOGITS = (None, "logits")
Cells: TypeAlias = Mapping[Place, Difference]


def route_reasons(a: Party, b: Party, cells: Cells, tokens: Sequence[int], ask: CompareOptions) -> tuple[str, ...]:
    """Say where the sides chose other experts, and what that makes of the logits' difference; () where they did not."""
    places = [p for p, cell in cells.items() if p[1] == ROUTED and cell.state is not State.SAME]
    if not places:
        return ()
    ask.emit(Phase("comparing the experts that were chosen"))
    routed_a, routed_b = _routed(a, tokens, ask), _routed(b, tokens, ask)
    found = {layer: s for layer, s in _swaps(a, routed_a, routed_b).items() if s}
    if not found:
        return ()
    first = min(found)
    floor = cells.get((first, ROUTER))
    limit = max(TIE, PROOF_MULTIPLE * (floor.floor or 0.0) if floor is not None else 0.0)
    n = sum(len({s.token for s in each}) for each in found.values())
    told = "; ".join(s.text(limit) for s in found[first][:3])
    of = sum(len(v) for p, v in routed_a.items() if p[1] == ROUTED)
    where = place_text((first, ROUTED))
    return (f"other experts for {n} of {of} routes (a token in a layer), first at {where}: {told}",
            *_shares(a, b, routed_a, routed_b, tokens, ask))


def _shares(
    a: Party, b: Party, routed_a: Mapping[Place, Tensor], routed_b: Mapping[Place, Tensor], tokens: Sequence[int],
    ask: CompareOptions
) -> tuple[str, ...]:
    """Force the one side's routes in the other, which must run here."""
    if LOGITS not in routed_a or LOGITS not in routed_b:
        return ()
    whole, _ = relative_l2(routed_a[LOGITS], routed_b[LOGITS])
    names = (SideName.A, SideName.B)
    live, given, held = (b, routed_a, routed_a) if isinstance(b, Side) else (a, routed_b, routed_b)
    if not isinstance(live, Side) or not 0 < whole < float("inf"):
        return ()
    routes = {p: _put(v) for p, v in given.items() if p[1] == ROUTED}
    forced: dict[Place, Tensor] = {}
    tap = chain(chain(live.bug(), patch(routes)), record_values(forced))
    run_lockstep([live.forward_run(tokens, tap)], ask.cancelled)
    left, _ = relative_l2(held[LOGITS], forced[LOGITS].to(held[LOGITS]))
    share = min(max(left / whole, 0.0), 1.0)
    names = names if live is b else names[::-1]
    return (f"of the logits' difference of {whole:.2g} (relative L2) {left:.2g} is left with {names[0]}'s routes "
            f"forced in {names[1]}: {1 - share:.0%} is other experts, {share:.0%} other arithmetic",)


def _put(value: Tensor) -> Change:
    return lambda now: value.to(now)


def _routed(party: Party, tokens: Sequence[int], ask: CompareOptions) -> dict[Place, Tensor]:
    """The routes, the routers' logits and the logits of a side."""
    wanted = (ROUTED, ROUTER, LOGITS[1])
    if isinstance(party, ExternalRun):
        like = torch.zeros(1)
        shown = {p: value_of(party.values, p, like) for p in party.values if p[1] in wanted}
        return {p: v for p, v in shown.items() if v is not None and len(v) in (1, len(tokens))}
    kept: dict[Place, Tensor] = {}

    def keep(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage in wanted:
            kept[layer, stage] = value
        return value

    run_lockstep([party.forward_run(tokens, chain(party.bug(), keep))], ask.cancelled)
    return kept


def _swaps(a: Party, routed_a: Mapping[Place, Tensor], routed_b: Mapping[Place, Tensor]) -> dict[int, list[Swap]]:
    model, found = side_of(a).model, dict[int, list[Swap]]()
    for layer in model.arch.layers:
        place, e = (layer.index, ROUTED), None if layer.ffn is None else layer.ffn.experts
        router = routed_a.get((layer.index, ROUTER), routed_b.get((layer.index, ROUTER)))
        if e is None or router is None or place not in routed_a or place not in routed_b:
            continue
        bias = model.vector(layer.prefix + "exp_probs_b.bias") if e.choice else None
        found[layer.index] = swaps(e, router, None if bias is None else bias.flatten(),
                                   routed_a[place].to(router), routed_b[place].to(router))
    return found
