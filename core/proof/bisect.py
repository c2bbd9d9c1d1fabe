"""Patch B's activations into A, layer by layer, and measure how much of the logits comes back.

A patch is a run of A with B's value put in at one place; it starts before the layer of that place, from what A, or of a
layer's output B, had there. judge_pair.py names the first place and the side; this proves the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.model.lockstep import run_lockstep
from core.model.model import Resume, Tap
from core.model.stages import Place, place_text
from core.proof.ladder_cache import KnownPatches
from core.proof.verdict import RECOVERED, LayerBisection, PatchResult
from core.system.cancel import IsCancelled
from core.system.progress import Phase, Reached
from core.trace.events import Emit
from core.trace.run import Side
from core.trace.taps import chain, patch


def bisect_layers(
    a: Side, b: Side, tokens: Sequence[int], known: KnownPatches, emit: Emit, cancelled: IsCancelled
) -> LayerBisection:
    """Find by halving the first layer whose output, taken from B, repairs A's logits; then patch each of its stages.

    known: what an earlier, interrupted bisection has measured; each new result is added.
    """
    n_layer = a.model.arch.n_layer
    values, own = dict[Place, Tensor](), dict[Place, Tensor]()
    ends: set[Place] = {(i, "output") for i in range(n_layer)}
    wanted = ends | {(None, "embedding"), (None, "final_norm")}
    n_step, told = 3 + max(n_layer - 1, 1).bit_length(), _tell(emit)
    emit(Phase("running both sides", 1, n_step))
    runs = run_lockstep([a.forward_run(tokens, chain(chain(a.bug(), told), _keep(ends, own))),
                         b.forward_run(tokens, chain(b.bug(), _keep(wanted, values)))], cancelled)
    truth, kl = runs[1], divergence(runs[1], runs[0])
    results: list[PatchResult] = []

    def patch_at(places: Sequence[Place]) -> list[PatchResult]:
        new = [p for p in places if place_text(p) not in known.kl]
        patched = [a.forward_run(tokens, chain(chain(a.bug(), patch({p: _constant(values[p])})), told),
                                 resume=_start_of(a, p, values, own)) for p in new]
        for place, logits in zip(new, run_lockstep(patched, cancelled) if patched else [], strict=True):
            known.add(place_text(place), divergence(truth, logits))
        found = [PatchResult(p, distance, 1 - distance / kl if kl else 0.0) for p in places
                 for distance in [known.kl[place_text(p)]]]
        results.extend(found)
        return found

    entry = _entry_layer(n_layer, lambda layer: patch_at([(layer, "output")])[0].recovered >= RECOVERED,
                         emit, n_step)
    if entry is None or entry < 0:
        patch_at([(None, "embedding"), (None, "final_norm")])
        return LayerBisection(kl, tuple(results), None)
    emit(Phase(f"grafting the stages of layer {entry}", n_step, n_step))
    inside: list[Place] = [(entry, s) for s in a.model.arch.layers[entry].nodes]
    again = b.forward_run(tokens, chain(b.bug(), _keep(set(inside), values)), resume=_resume_at(b, entry, values))
    run_lockstep([again], cancelled, enough=lambda: {(entry, "output"), *inside} <= values.keys())
    patch_at([place for place in inside if place[1] != "output"])
    return LayerBisection(kl, tuple(results), entry)


def divergence(truth: Tensor, logits: Tensor) -> float:
    """KL(truth || logits) of the last token's distribution, in nats; inf where a logit is not finite on one side."""
    p, q = (t[0].double().log_softmax(-1) for t in (truth, logits))
    kl = float((p.exp() * (p - q)).nansum() if torch.isfinite(q).all() else torch.tensor(float("inf")))
    return max(kl, 0.0)


def _entry_layer(n_layer: int, repairs: Callable[[int], bool], emit: Emit, n_step: int) -> int | None:
    """The first layer whose output repairs the logits, by halving; -1: layer 0's input; None: not even the last."""
    low, high, step = 0, n_layer - 1, 2
    emit(Phase(f"grafting the output of layer {high}", step, n_step))
    if not repairs(high):
        return None
    while low < high:
        step += 1
        emit(Phase(f"halving layers {low} to {high}", step, n_step))
        middle = (low + high) // 2
        low, high = (low, middle) if repairs(middle) else (middle + 1, high)
    return low


def _start_of(a: Side, place: Place, of_b: dict[Place, Tensor], of_a: dict[Place, Tensor]) -> Resume | None:
    """Where a patched run of A parts from what is known: after a patched output, or before the layer of the place."""
    layer, stage = place
    if layer is None:
        return None
    return _resume_at(a, layer + 1, of_b) if stage == "output" else _resume_at(a, layer, of_a)


def _resume_at(side: Side, layer: int, values: dict[Place, Tensor]) -> Resume | None:
    """Go on before that layer from the output kept of the one before; None: from the tokens, as a planted bug needs."""
    x, model = values.get((layer - 1, "output")), side.model
    if x is None or side.plant or not model.arch.can_resume:
        return None
    return Resume(layer, x.to(model.device, model.dtype))


def _keep(wanted: set[Place], into: dict[Place, Tensor]) -> Tap:
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if (layer, stage) in wanted:
            into[layer, stage] = value
        return value
    return tap


def _tell(emit: Emit) -> Tap:
    """A tap that says which layer has ended, and changes nothing."""
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if layer is not None and stage == "output":
            emit(Reached(layer))
        return value
    return tap


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old)
