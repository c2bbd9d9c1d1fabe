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
from core.model.forward import Tap
from core.model.lockstep import drive
from core.model.stages import Place, place_order, place_text, stage_named
from core.proof.distance import difference, relative_l2
from core.proof.measure_pair import LEAST_FLOOR, Pair, judged, scope_rows
from core.quant.activations import COMPUTES
from core.system.cancel import IsCancelled
from core.trace.events import Emit, Event
from core.trace.measures import Difference
from core.trace.run import Side, same_bits, verifying
from core.trace.stats import Cell
from core.trace.taps import chain, jitter, record

Values = Mapping[Place, Any]
TURNED = ("q_rope", "k_rope")
F32_ANGLE = 2.0**-25  # a position: engines take RoPE's angles in float32 and ours are float64; measured 7e-6 at 400


@dataclass(frozen=True, slots=True)
class Capture:
    """A source's values, and its model at the compute it declares. borrowed: the weights are the other side's."""

    side: Side
    values: Values
    borrowed: bool = False


def misfits(values: Values, arch: Arch, n_token: int) -> list[str]:
    """Say which values cannot be of this model and these tokens, a sentence each; [] where all fit."""
    found = []
    for place in sorted(values, key=place_order):
        shape, width = tuple(values[place].shape), arch.widths[stage_named(place[1]).width]
        if len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= n_token or (place[0] or 0) >= arch.n_layer:
            found.append(f"{place_text(place)} has shape {list(shape)}; {n_token} tokens through this model's "
                         f"{arch.n_layer} layers make [{n_token}, {width}]")
    return found


def missing_before(values: Values, place: Place) -> tuple[str, ...]:
    """The stages without values through which a place is recomputed from what has values, in order of computation."""
    wanted, found = [place], set[Place]()
    while wanted:
        layer, stage = wanted.pop()
        for name in stage_named(stage).inputs:
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


def run_beside(
    live: Side, a: Values | None, b: Values | None, tokens: Sequence[int], *, scope: str, seed: int, unit: float,
    emit: Emit, keep: dict[Place, Tensor] | None = None, witness: bool = True, cancelled: IsCancelled,
) -> Pair:
    """Measure B against A where a side is a capture (its values) and the other the live forward (None).

    The floor is measured on the live forward, with noise of that unit. A capture has no statistics in the Pair, and
    both logits are the live forward's.
    """
    now: dict[Place, Tensor] = {}
    cells: dict[Place, Difference] = {}
    watched: dict[Place, Cell] = {}

    def seen(place: Place, stats: Cell) -> None:
        watched[place] = stats
        emit(Event("cell", place=place, cell=stats, side="A" if a is None else "B"))

    def hold(layer: int | None, stage: str, value: Tensor) -> Tensor:
        now[layer, stage] = value
        return value

    def measure(layer: int | None, stage: str, value: Tensor) -> Tensor:
        place = (layer, stage)
        clean = now.pop(place)
        left, right = (clean if v is None else captured(v, place, clean) for v in (a, b))
        if left is None or right is None:
            return value
        n_row = min(len(left), len(right))
        rows = scope_rows(scope, len(tokens), n_row)
        if rows:
            left, right, clean, noisy = (t[len(t) - n_row :][rows] for t in (left, right, clean, value))
            cells[place] = judged(replace(
                difference(left, right, len(tokens) - n_row + rows[0]),
                floor=max(relative_l2(clean, noisy)[0], LEAST_FLOOR)))
        return value

    noise = chain(jitter(unit, seed), _angle_noise(len(tokens), seed))
    lanes = [live.lane(tokens, chain(chain(live.bug(), record(seen, len(tokens), keep)), hold)),
             live.lane(tokens, chain(chain(live.bug(), noise), measure))]
    if witness:
        lanes.append(live.lane(tokens, live.bug()))
    with verifying(live.model.file):
        logits = drive(lanes, cancelled)
    same = same_bits(logits[0], logits[2]) if witness else None
    nothing: dict[Place, Cell] = {}
    if a is None:
        return Pair(watched, nothing, cells, (logits[0], logits[0]), (same, None))
    return Pair(nothing, watched, cells, (logits[0], logits[0]), (None, same))


def _angle_noise(n_token: int, seed: int) -> Tap:
    """Disturb what RoPE has turned as much as angles in float32 do: by F32_ANGLE a position."""
    source = torch.Generator().manual_seed(seed)

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage not in TURNED:
            return value
        unit = F32_ANGLE * torch.arange(n_token - len(value), n_token)[:, None]
        u = torch.rand(value.shape, generator=source) * 2 - 1
        return value * (1 + unit * u).to(value)

    return tap


def captured(values: Values, place: Place, like: Tensor) -> Tensor | None:
    """The value of a place on the device of another; None where the source lacks it."""
    value = values.get(place)
    return None if value is None else torch.as_tensor(value).to(like.device, torch.float32)


def unit_of(*sides: Side) -> float:
    """Rounding unit of the finer compute."""
    return min(COMPUTES[s.compute].unit for s in sides)


def is_whole(values: Values, n_layer: int) -> bool:
    """Say whether a capture shows every layer's end and the logits: then each stage is judged, alone or in a span."""
    return (None, "logits") in values and all((layer, "output") in values for layer in range(n_layer))
