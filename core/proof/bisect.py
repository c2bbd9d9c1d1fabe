"""Graft B's values into A and see how much of the logits comes back: the ladder that shows where a difference enters.

A rung is a run of A with B's value put in at one place. judge_pair.py names the first place and the side; this proves
the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.model.lockstep import drive
from core.model.model import Tap
from core.model.stages import Place, place_text
from core.proof.ladder_cache import KnownRungs
from core.proof.verdict import RECOVERED, Ladder, Rung
from core.system.cancel import IsCancelled
from core.system.progress import Phase
from core.trace.events import Emit
from core.trace.run import Side
from core.trace.taps import chain, patch


def climb(
    a: Side, b: Side, tokens: Sequence[int], known: KnownRungs, emit: Emit, cancelled: IsCancelled
) -> Ladder:
    """Find by halving the first layer whose output, taken from B, repairs A's logits; then graft each of its stages.

    known: the rungs that an earlier, interrupted climb has measured; each new one is added.
    """
    n_layer = a.model.arch.n_layer
    values: dict[Place, Tensor] = {}
    wanted: set[Place] = {(i, "output") for i in range(n_layer)} | {(None, "embedding"), (None, "final_norm")}
    runs = drive([a.lane(tokens, a.bug()), b.lane(tokens, chain(b.bug(), _keep(wanted, values)))], cancelled)
    truth, kl = runs[1], divergence(runs[1], runs[0])
    rungs: list[Rung] = []

    def graft(places: Sequence[Place]) -> list[Rung]:
        new = [p for p in places if place_text(p) not in known.kl]
        lanes = [a.lane(tokens, chain(a.bug(), patch({p: _constant(values[p])}))) for p in new]
        for place, logits in zip(new, drive(lanes, cancelled) if lanes else [], strict=True):
            known.add(place_text(place), divergence(truth, logits))
        found = [Rung(p, rung, 1 - rung / kl if kl else 0.0) for p in places for rung in [known.kl[place_text(p)]]]
        rungs.extend(found)
        return found

    entry = _entry_layer(n_layer, lambda layer: graft([(layer, "output")])[0].recovered >= RECOVERED, emit)
    if entry is None or entry < 0:
        graft([(None, "embedding"), (None, "final_norm")])
        return Ladder(kl, tuple(rungs), None)
    emit(Phase(f"grafting the stages of layer {entry}"))
    stages = tuple(a.model.arch.layers[entry].nodes)
    inside: set[Place] = {(entry, s) for s in stages}
    drive([b.lane(tokens, chain(b.bug(), _keep(inside, values)))], cancelled, enough=lambda: (entry, "output") in values
          and inside <= values.keys())
    graft([(entry, s) for s in stages if s != "output"])
    return Ladder(kl, tuple(rungs), entry)


def divergence(truth: Tensor, logits: Tensor) -> float:
    """KL(truth || logits) of the last token's distribution, in nats; inf where a logit is not finite on one side."""
    p, q = (t[0].double().log_softmax(-1) for t in (truth, logits))
    kl = float((p.exp() * (p - q)).nansum() if torch.isfinite(q).all() else torch.tensor(float("inf")))
    return max(kl, 0.0)


def _entry_layer(n_layer: int, repairs: Callable[[int], bool], emit: Emit) -> int | None:
    """The first layer whose output repairs the logits, by halving; -1: layer 0's input; None: not even the last."""
    low, high = 0, n_layer - 1
    if not repairs(high):
        return None
    while low < high:
        emit(Phase(f"halving layers {low} to {high}"))
        middle = (low + high) // 2
        low, high = (low, middle) if repairs(middle) else (middle + 1, high)
    return low


def _keep(wanted: set[Place], into: dict[Place, Tensor]) -> Tap:
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if (layer, stage) in wanted:
            into[layer, stage] = value
        return value
    return tap


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old)
