"""Check a source against float64: each stage recomputed from the source's own inputs and its own weights.

It needs no second model. Three forwards walk side by side: the source's (or, of a capture, its values); the same
compute, clean, fed with the source's values at every stage (what the compute itself costs: the floor); and float64, fed
likewise (the truth). Where a capture lacks a stage both go on with their own value: the span is judged in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from core.faults.wrong_ops import Scene
from core.model.forward import Tap, forward
from core.model.lockstep import Lane, drive
from core.model.stages import Place
from core.proof.capture import F32_ANGLE, TURNED, Values, captured, missing_before
from core.proof.distance import nmse, relative_l2
from core.proof.guess_fault import guess
from core.system.cancel import IsCancelled
from core.trace.measures import LocalError
from core.trace.run import Side, verifying
from core.trace.taps import chain

GUESSES = 3  # bad stages whose bug is guessed; each guess recomputes the stage as every known bug would


def replay(
    side: Side, tokens: list[int], *, watch: Tap, values: Values | None = None, last_layer: int | None = None,
    witness: bool = False, seen: Callable[[Place, LocalError], None] = lambda place, error: None,
    cancelled: IsCancelled,
) -> tuple[dict[Place, LocalError], list[Tensor]]:
    """Return the local error of every stage up to last_layer (None: all), and the logits of the run and of its witness.

    A stage none of whose tokens has finite inputs has no error.

    values: of a source that is not run here (no logits come back); side is then its model at its declared compute.
    """
    now: dict[Place, Tensor] = {}
    floor_now: dict[Place, Tensor] = {}
    errors: dict[Place, LocalError] = {}
    inputs: dict[str, Tensor] = {}
    reached: set[Place] = set()
    exact = replace(side.model, dtype=torch.float64)

    def keep(layer: int | None, stage: str, value: Tensor) -> Tensor:
        now[layer, stage] = value
        return value

    def clean(layer: int | None, stage: str, value: Tensor) -> Tensor:
        floor_now[layer, stage] = value
        source = now[layer, stage] if values is None else captured(values, (layer, stage), value)
        if source is not None:
            now[layer, stage] = source
        return value if source is None else _grafted(source, value)

    def truth(layer: int | None, stage: str, value: Tensor) -> Tensor:
        source, by_compute = now.pop((layer, stage), None), floor_now.pop((layer, stage))
        if source is not None:
            judge((layer, stage), value[-len(source) :], by_compute[-len(source) :], source)
        gone_on = value if source is None else _grafted(source.to(value), value)
        inputs[stage] = gone_on
        if stage in ("embedding", "output"):
            inputs["previous"] = gone_on
        return gone_on

    def judge(place: Place, value: Tensor, by_compute: Tensor, source: Tensor) -> None:
        reached.add(place)
        error = local_error(place, value, by_compute, source, values, len(tokens))
        if error is None:
            return  # no token of its inputs is finite: nothing was measured, and nothing is said of it
        if error.is_bad and sum(e.is_bad for e in errors.values()) < GUESSES:
            error = replace(error, guess=guess(Scene(exact, *place, value, inputs), source.to(value), error.limit))
        errors[place] = error
        seen(place, error)

    lanes = [Lane(forward(side.model, tokens, clean), side.compute, side.threads, plain=True, device=side.model.device),
             Lane(forward(exact, tokens, truth), "f32", side.threads)]
    if values is None:
        lanes.insert(0, side.lane(tokens, chain(chain(side.bug(), watch), keep)))
        if witness:
            lanes.append(side.lane(tokens, side.bug()))
    with verifying(side.model.file):
        logits = drive(lanes, cancelled, enough=lambda: last_layer is not None and (last_layer, "output") in reached)
    if values is not None:
        return errors, []
    return errors, [logits[0], logits[-1]] if logits and witness else logits[:1]


def local_error(
    place: Place, truth: Tensor, by_compute: Tensor, source: Tensor, values: Values | None, n_token: int
) -> LocalError | None:
    """Measure a source's value against float64 and against its compute; None where no token's truth is finite.

    values: the whole capture, where the source is one: it says what the stage's span is, and adds float32's angles.
    """
    cost, here = nmse(truth, by_compute), nmse(truth, source)
    if cost is None or here is None:
        return None
    floor, (size, row, channel) = cost[0], here
    span: tuple[str, ...] = ()
    declared = None
    if values is not None:
        span, declared = missing_before(values, place), relative_l2(by_compute, source)[0]
        if {place[1], *span} & set(TURNED):
            floor = max(floor, (n_token * F32_ANGLE) ** 2)
    return LocalError(size, floor, n_token - len(source) + row, channel, span=span, declared=declared)


def _grafted(source: Tensor, value: Tensor) -> Tensor:
    """The source's rows in place of the last rows of the value: some engines keep the last token only, near the end."""
    return source if len(source) == len(value) else torch.cat((value[: -len(source)], source))
