"""Check a source against float64: each stage recomputed from the source's own inputs and its own weights.

It needs no second model. Three forwards walk side by side: the source's; the same compute, clean, fed with the source's
values at every stage (what the compute itself costs: the floor); and float64, fed likewise (the truth).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from core.distance import nmse
from core.forward import Tap, forward
from core.lanes import Lane, drive
from core.run import Side, verifying
from core.stages import Place
from core.symptoms import guess
from core.tap import chain
from core.trace import IsCancelled
from core.verdict import LocalError
from core.wrong_ops import Scene

GUESSES = 3  # bad stages whose bug is guessed; each guess recomputes the stage as every known bug would


def replay(
    side: Side, tokens: list[int], *, watch: Tap, last_layer: int | None = None, witness: bool = False,
    seen: Callable[[Place, LocalError], None] = lambda place, error: None, cancelled: IsCancelled,
) -> tuple[dict[Place, LocalError], list[Tensor]]:
    """Return the local error of every stage up to last_layer (None: all), and the logits of the run and of its witness."""
    now: dict[Place, Tensor] = {}
    floor: dict[Place, float] = {}
    errors: dict[Place, LocalError] = {}

    def keep(layer: int | None, stage: str, value: Tensor) -> Tensor:
        now[layer, stage] = value
        return value

    def clean(layer: int | None, stage: str, value: Tensor) -> Tensor:
        floor_now[layer, stage] = value
        return now[layer, stage]

    def truth(layer: int | None, stage: str, value: Tensor) -> Tensor:
        place = (layer, stage)
        source = now.pop(place)
        floor[place] = nmse(value, floor_now.pop(place))[0]
        size, row, channel = nmse(value, source)
        first = len(tokens) - len(source)
        error = LocalError(size, floor[place], first + row, channel)
        if error.is_bad and sum(e.is_bad for e in errors.values()) < GUESSES:
            error = replace(error, guess=guess(Scene(exact, layer, stage, value, inputs), source.to(value), error.limit))
        errors[place] = error
        seen(place, error)
        inputs[stage] = source
        if stage in ("embedding", "output"):
            inputs["previous"] = source
        return source.to(value)

    floor_now: dict[Place, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    exact = replace(side.model, dtype=torch.float64)
    lanes = [
        side.lane(tokens, chain(chain(side.bug(), watch), keep)),
        Lane(forward(side.model, tokens, clean), side.compute, side.threads),
        Lane(forward(exact, tokens, truth), "f32", side.threads),
    ]
    if witness:
        lanes.append(side.lane(tokens, side.bug()))
    with verifying(side.model.file):
        logits = drive(lanes, cancelled, enough=lambda: last_layer is not None and (last_layer, "output") in errors)
    return errors, [logits[0], logits[-1]] if logits and witness else logits[:1]
