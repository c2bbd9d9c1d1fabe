"""Measure values of a source that is not run again here (another engine, a bundle) beside a live forward. No verdicts.

A capture comes with a Side: the model file at the compute that the source declares, which is what float64 judges it by
and what measures its floor. Stages that it lacks are absent: no cell, and a replay goes on with the recomputed value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.model.arch import Arch
from core.model.model import Model, Tap
from core.model.ops import TABLES
from core.model.stages import Place, place_order, place_text, stage_named, stages_of
from core.proof.measure_pair import CompareOptions, PairMeasurement, PairMeasurer, SideWatch, run_verified
from core.trace.engines import GELU_TABLE
from core.trace.measures import SideName
from core.trace.run import SEED, Side
from core.trace.taps import add_noise, chain, record_values

Values = Mapping[Place, Any]  # place -> [rows, W] of the last rows of T tokens: torch tensors, or numpy arrays
ROPE_STAGES = stages_of("rope")
F32_ANGLE = 2.0**-25  # a position: engines take RoPE's angles in float32 and ours are float64; measured 7e-6 at 400


@dataclass(frozen=True, slots=True)
class ExternalRun:
    """A source's values, and its model at the compute it declares. borrowed: the weights are the other side's."""

    side: Side
    values: Values
    borrowed: bool = False


def declared(side: Side, kernel: str | None) -> Side:
    """The side with the choices that an engine's kernel declares: its GELU."""
    return replace(side, model=_activated(side.model, TABLES)) if GELU_TABLE in (kernel or "") else side


def exact(model: Model) -> Model:
    """The model without such choices."""
    return _activated(model, {table: act for act, table in TABLES.items()})


def _activated(model: Model, acts: Mapping[str, str]) -> Model:
    layers = tuple(
        layer if layer.ffn is None or layer.ffn.act not in acts else
        replace(layer, ffn=replace(layer.ffn, act=acts[layer.ffn.act])) for layer in model.arch.layers)
    return model if layers == model.arch.layers else replace(model, arch=replace(model.arch, layers=layers))


def misfits(values: Values, arch: Arch, n_token: int) -> list[str]:
    """Say which values cannot be of this model and these tokens, a sentence each; [] where all fit."""
    found = []
    for place in sorted(values, key=place_order):
        shape, inside = tuple(values[place].shape), (place[0] or 0) < arch.n_layer
        width = arch.width(*place) if inside else arch.d_model
        if width is None:
            found.append(f"{place_text(place)} is no stage of that layer ({arch.layers[place[0] or 0].kind})")
        elif len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= n_token or not inside:
            found.append(f"{place_text(place)} has shape {list(shape)}; {n_token} tokens through this model's "
                         f"{arch.n_layer} layers make [{n_token}, {width}]")
    return found


def missing_before(values: Values, place: Place, arch: Arch) -> tuple[str, ...]:
    """The stages without values through which a place is recomputed from what has values, in order of computation."""
    wanted, found = [place], set[Place]()
    while wanted:
        layer, stage = wanted.pop()
        for name in arch.inputs_of(layer, stage):
            source = _input(values, layer, name)
            if source is not None and source not in values and source not in found:
                found.add(source)
                wanted.append(source)
    return tuple(s if p == place[0] else place_text((p, s)) for p, s in sorted(found, key=place_order))


def _input(values: Values, layer: int | None, name: str) -> Place | None:
    if name != "previous":
        return (None if stage_named(name).whole else layer, name)
    last = max((p for p, _ in values if p is not None), default=0)
    before = last if layer is None else layer - 1
    return (None, "embedding") if before < 0 else (before, "output")


def measure_external(
    live: Side, a: Values | None, b: Values | None, tokens: Sequence[int], ask: CompareOptions, unit: float
) -> PairMeasurement:
    """Measure B against A where a side is a capture (its values) and the other the live forward (None).

    The floor is measured on the live forward, with noise of that relative rounding unit. Where a capture has the last
    rows only, those are compared. An external side is None in the result; of two, live's run stands as B.
    """
    measurer = PairMeasurer(ask.scope, len(tokens))
    now: dict[Place, Tensor] = {}

    def noisy(layer: int | None, stage: str, value: Tensor) -> Tensor:
        place = (layer, stage)
        clean = now.pop(place)
        left, right = (clean if v is None else value_of(v, place, clean) for v in (a, b))
        if left is not None and right is not None:
            n_row = min(len(left), len(right))
            left, right, clean, with_noise = (t[len(t) - n_row :] for t in (left, right, clean, value))
            measurer.measure_floor(place, clean, with_noise)
            measurer.measure(place, left, right)
        return value

    watch = SideWatch(SideName.A if a is None else SideName.B, len(tokens), ask)
    noise = chain(add_noise(unit, SEED), _angle_noise(len(tokens), SEED))
    run = live.forward_run(tokens, chain(chain(live.bug(), watch.tap), record_values(now)))
    with_noise = live.forward_run(tokens, chain(chain(live.bug(), noise), noisy))
    control = live.forward_run(tokens, live.bug()) if ask.control else None
    run_verified((run, with_noise, control), (live.model.file,), ask.cancelled)
    taken = watch.measured(run, control)
    return PairMeasurement(taken, None, measurer.cells) if a is None else PairMeasurement(None, taken, measurer.cells)


def run_on_external(
    live: Side, values: Values, side: SideName, tokens: Sequence[int], ask: CompareOptions
) -> PairMeasurement:
    """Measure B against A where one of them, named by side, is a run of this forward that was saved, of equal compute.

    The local error is that of live's operation on the saved inputs. A stage that was not saved is recomputed from those
    before it, and has no cell.
    """
    measurer = PairMeasurer(ask.scope, len(tokens), alike=True)
    now: dict[Place, Tensor] = {}

    def on_saved(layer: int | None, stage: str, value: Tensor) -> Tensor:
        place = (layer, stage)
        saved, own = value_of(values, place, value), now.pop(place)
        if saved is None:
            return value
        n = len(saved)
        pair = (saved, own[-n:]) if side is SideName.A else (own[-n:], saved)
        measurer.measure(place, *pair, value[-n:], side)
        return torch.cat((value[:-n], saved.to(value)))

    watch = SideWatch(SideName.B if side is SideName.A else SideName.A, len(tokens), ask)
    run = live.forward_run(tokens, chain(chain(live.bug(), watch.tap), record_values(now)))
    beside = live.forward_run(tokens, chain(live.bug(), on_saved))
    control = live.forward_run(tokens, live.bug()) if ask.control else None
    run_verified((run, beside, control), (live.model.file,), ask.cancelled)
    taken = watch.measured(run, control)
    return PairMeasurement(None, taken, measurer.cells,
                           True) if side is SideName.A else PairMeasurement(taken, None, measurer.cells, True)


def _angle_noise(n_token: int, seed: int) -> Tap:
    """Disturb what RoPE has turned as much as angles in float32 do: by F32_ANGLE a position."""
    source = torch.Generator().manual_seed(seed)

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage not in ROPE_STAGES:
            return value
        unit = F32_ANGLE * torch.arange(n_token - len(value), n_token)[:, None]
        u = torch.rand(value.shape, generator=source) * 2 - 1
        return value * (1 + unit * u).to(value)

    return tap


def value_of(values: Values, place: Place, like: Tensor) -> Tensor | None:
    """The value [rows, W] of a place in float32, on the device of another; None where the source lacks it."""
    value = values.get(place)
    return None if value is None else torch.as_tensor(value).to(like.device, torch.float32)


def is_whole(values: Values, n_layer: int) -> bool:
    """Say whether a capture shows every layer's end and the logits: then each stage is judged, alone or in a span."""
    return (None, "logits") in values and all((layer, "output") in values for layer in range(n_layer))
