"""Check a source against float64: each stage recomputed from the source's own inputs and its own weights.

It needs no second model. Three forwards run in lockstep: the source's (or, of a capture, its values); the same
compute, clean, fed with the source's values at every stage (what the compute itself costs: the floor); and float64, fed
likewise (the truth). Where a capture lacks a stage both go on with their own value: the span is judged in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.faults.stage_inputs import StageInputs
from core.model.arch import Arch
from core.model.experts import TIE, Swap, with_ties_of
from core.model.forward import forward
from core.model.lockstep import ForwardRun
from core.model.model import Tap
from core.model.stages import ROUTED, ROUTER, Place
from core.proof.capture import F32_ANGLE, ROPE_STAGES, Values, exact, missing_before, value_of
from core.proof.distance import nmse, relative_l2
from core.proof.guess_fault import match_known_fault
from core.proof.measure_pair import run_verified, same_logits
from core.proof.weights.fault import Overflow
from core.system.cancel import IsCancelled
from core.trace.measures import LocalError
from core.trace.run import Side
from core.trace.taps import chain

GUESSES = 3  # bad stages whose bug is guessed; each guess recomputes the stage as every known bug would

OnError = Callable[[Place, LocalError], None]


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """What a checked run leaves.

    logits: [1, V] of the last token, float32. same_logits: whether the control run's have the same bits.
    lost: the places without one token whose inputs are finite. overflow: the first that the compute could not hold.
    """

    errors: dict[Place, LocalError]
    logits: Tensor
    same_logits: bool
    lost: tuple[Place, ...]
    overflow: Overflow | None


def check_run(
    side: Side, tokens: Sequence[int], *, watch: Tap, on_error: OnError, cancelled: IsCancelled
) -> CheckedRun:
    """Run a source with the watching tap in it, check its every stage, and run it once more without any tap.

    on_error is told each error as it is found, in order of computation.
    """
    checker = StageChecker(side, tokens, on_error=on_error)
    source = side.forward_run(tokens, chain(chain(side.bug(), watch), checker.on_source))
    control = side.forward_run(tokens, side.bug())
    run_verified((source, *checker.runs(), control), (side.model.file,), cancelled)
    return CheckedRun(checker.errors, source.logits, same_logits(source, control), tuple(checker.lost),
                      checker.overflow)


def check_stages(
    side: Side, tokens: Sequence[int], *, values: Values | None = None, last_layer: int | None = None,
    cancelled: IsCancelled, on_error: OnError = lambda place, error: None,
) -> dict[Place, LocalError]:
    """Return the local error of every stage up to last_layer (None: all); none of a stage without finite inputs.

    values: of a source that is not run here; side is then its model at its declared compute.
    """
    return judge_stages(
        side, tokens, values=values, last_layer=last_layer, cancelled=cancelled, on_error=on_error).errors


def judge_stages(
    side: Side, tokens: Sequence[int], *, values: Values | None = None, last_layer: int | None = None,
    cancelled: IsCancelled, on_error: OnError = lambda place, error: None,
) -> StageChecker:
    """Do what check_stages does, and return all that was found."""
    checker = StageChecker(side, tokens, values, on_error)
    source = side.forward_run(tokens, chain(side.bug(), checker.on_source)) if values is None else None
    run_verified((source, *checker.runs()), (side.model.file,), cancelled,
                   enough=lambda: last_layer is not None and checker.has_reached((last_layer, "output")))
    return checker


class StageChecker:
    """Judges each stage of a source by what its runs leave at a place: the source, its compute, then float64.

    Values are [rows, W], W the width of a stage; rows are those of all T tokens, or of the last where a capture has
    those only, and logits' is one.
    """

    def __init__(
        self, side: Side, tokens: Sequence[int], values: Values | None = None,
        on_error: OnError = lambda place, error: None,
    ) -> None:
        self.errors: dict[Place, LocalError] = {}
        self.lost: list[Place] = []
        self.overflow: Overflow | None = None
        self._side, self._tokens, self._values, self._on_error = side, tokens, values, on_error
        self._exact = replace(exact(side.model), dtype=torch.float64)
        self._source: dict[Place, Tensor] = {}   # at the places that the float64 run has yet to reach
        self._compute: dict[Place, Tensor] = {}  # likewise: what the compute makes of the source's values
        self._inputs: dict[str, Tensor] = {}     # stage -> what the float64 run goes on with, of the layer under way
        self._reached: set[Place] = set()

    def runs(self) -> tuple[ForwardRun, ForwardRun]:
        """The run of the clean compute and that of float64; a live source's run comes before them."""
        return (self._side.forward_run(self._tokens, self.on_compute, plain=True),
                ForwardRun(forward(self._exact, self._tokens, self.on_float64), "f32", self._side.threads))

    def has_reached(self, place: Place) -> bool:
        """Whether the source's value at that place has been held against float64."""
        return place in self._reached

    def on_source(self, layer: int | None, stage: str, value: Tensor) -> Tensor:
        """The tap of a live source: keep its value."""
        self._source[layer, stage] = value
        return value

    def on_compute(self, layer: int | None, stage: str, value: Tensor) -> Tensor:
        """The tap of the clean compute: keep its value, and go on with the source's."""
        place = (layer, stage)
        self._compute[place] = value
        if self._values is not None:
            found = value_of(self._values, place, value)
            if found is not None:
                self._source[place] = found
        source = self._source.get(place)
        return value if source is None else _with_rows_of(source, value)

    def on_float64(self, layer: int | None, stage: str, value: Tensor) -> Tensor:
        """The tap of float64: judge the source's value by this one, and go on with the source's."""
        source, by_compute = self._source.pop((layer, stage), None), self._compute.pop((layer, stage))
        if source is not None:
            self._judge((layer, stage), value[-len(source) :], by_compute[-len(source) :], source)
            value = _with_rows_of(source.to(value), value)
        self._inputs[stage] = value
        if stage in ("embedding", "output"):
            self._inputs["previous"] = value
        return value

    def _judge(self, place: Place, truth: Tensor, by_compute: Tensor, source: Tensor) -> None:
        self._reached.add(place)
        if self.overflow is None:
            self.overflow = self._overflowed(place, truth, by_compute, source)
        truth, by_compute, ties = self._as_sets(place, truth, by_compute, source)
        error = local_error(place, truth, by_compute, source, len(self._tokens), self._values, self._exact.arch)
        if error is not None and ties:
            error = replace(error, ties=tuple(s.text(TIE) for s in ties))
        if error is None:
            self.lost.append(place)  # nothing was measured, and nothing is said of it
            return
        if error.is_bad and sum(e.is_bad for e in self.errors.values()) < GUESSES:
            inputs = StageInputs(self._exact, *place, truth, self._inputs)
            error = replace(error, guess=match_known_fault(inputs, source.to(truth), error.limit))
        self.errors[place] = error
        self._on_error(place, error)

    def _as_sets(
        self, place: Place, truth: Tensor, by_compute: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor, list[Swap]]:
        """Of a router's choice, the right weights of the source's experts where its scores are a tie."""
        layer = None if place[0] is None else self._exact.arch.layers[place[0]]
        e = None if layer is None or layer.ffn is None else layer.ffn.experts
        if place[1] != ROUTED or layer is None or e is None or e.down_scale:
            return truth, by_compute, []
        bias = self._exact.vector(layer.prefix + "exp_probs_b.bias")
        router, bias = self._inputs[ROUTER][-len(source) :], None if bias is None else bias.flatten()
        truth, ties = with_ties_of(e, router, bias, truth, source)
        return truth, with_ties_of(e, router, bias, by_compute, truth)[0], ties

    def _overflowed(self, place: Place, truth: Tensor, by_compute: Tensor, source: Tensor) -> Overflow | None:
        """The largest value of a place that is not finite in the source as in its compute, and finite in float64."""
        if bool(by_compute.isfinite().all()):
            return None
        beyond = truth.isfinite() & ~by_compute.isfinite() & ~source.isfinite()
        if not bool(beyond.any()):
            return None
        row, channel = divmod(int(torch.where(beyond, truth.abs(), -1.0).argmax()), truth.shape[1])
        return Overflow(place, len(self._tokens) - len(source) + row, channel, float(truth[row, channel]),
                        self._side.compute)


def local_error(
    place: Place, truth: Tensor, by_compute: Tensor, source: Tensor, n_token: int, values: Values | None, arch: Arch
) -> LocalError | None:
    """Measure a source's value against float64 and against its compute; None where no token's truth is finite.

    A token that overflows in its compute as in the source has no error: it is no other arithmetic.
    truth, by_compute and source: [rows, W] of the last of n_token tokens. values: the whole capture, where the source
    is one: it says what the stage's span is, and adds float32's angles.
    """
    held = by_compute.isfinite().all(1, keepdim=True)
    cost = nmse(torch.where(held, truth, torch.nan), by_compute)
    here = nmse(torch.where(held | source.isfinite().all(1, keepdim=True), truth, torch.nan), source)
    if here is None:
        return None
    floor, (size, row, channel) = cost[0] if cost else 0.0, here
    span: tuple[str, ...] = ()
    declared = None
    if values is not None:
        span, declared = missing_before(values, place, arch), relative_l2(by_compute, source)[0]
        if {place[1], *span} & set(ROPE_STAGES):
            floor = max(floor, (n_token * F32_ANGLE) ** 2)
    return LocalError(size, floor, n_token - len(source) + row, channel, span=span, declared=declared,
                      inputs=arch.inputs_of(*place))


def _with_rows_of(source: Tensor, value: Tensor) -> Tensor:
    """The source's rows in place of the last rows of [T, W]: some engines keep the last token only, near the end."""
    return source if len(source) == len(value) else torch.cat((value[: -len(source)], source))
