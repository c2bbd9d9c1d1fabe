"""Cheap rules that every step of a sound run keeps, each of them violated once by a published training run.

A rule returns None, or the sentence that ends the run. The rules on files and devices are checks/gates.
Source of the histories: the gap list of the albor project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.train.config import CLIP, Plan, learning_rate
from core.train.step import Measured

CLIP_TOLERANCE = 1e-3   # relative: a float32 sum over up to 4e8 squares, and clipping divides by norm + 1e-6
MOVE_TOLERANCE = 0.02   # relative, of the first step's move: AdamW's eps of 1e-8 beside a small gradient
HALF_ULP_OF_1 = 1.2e-7  # a norm weight of 1.0 + lr is rounded to float32
LR_LEFT = 0.5           # a schedule that ends above this part of its peak was made for a longer run


@dataclass(slots=True)
class InvariantState:
    """What the rules remember from step to step; it goes into a checkpoint."""

    last: tuple[float, float] | None = None         # loss and gradient norm of the step before
    cursor: int = 0
    data_epoch: int = 0
    hashes: set[str] = field(default_factory=set)   # of the batches of this epoch of the data


@dataclass(frozen=True, slots=True)
class StepObservation:
    """What a rule looks at."""

    plan: Plan
    step: int
    measured: Measured
    batch_hash: str
    cursor: int       # before the step
    data_epoch: int
    is_first: bool    # the optimizer's first step: Adam then moves an element by lr, whatever its gradient


Rule = Callable[[StepObservation, InvariantState], str | None]


def finite(observed: StepObservation, state: InvariantState) -> str | None:
    """The weights were left as they were."""
    for name, value in (("loss", observed.measured.loss), ("gradient norm", observed.measured.grad_norm)):
        if not math.isfinite(value):
            born = f", {observed.measured.birth}" if observed.measured.birth else ""
            return f"the {name} of step {observed.step} is {value}{born}; the weights are those before the step"
    return None


def loss_is_measured(observed: StepObservation, state: InvariantState) -> str | None:
    """A cross-entropy is above 0, and two batches never give the same bits of loss and gradient norm."""
    loss, norm = observed.measured.loss, observed.measured.grad_norm
    if loss <= 0.0:
        return f"the loss of step {observed.step} is {loss}: no cross-entropy over text is 0 or less"
    if state.last == (loss, norm):
        return (f"step {observed.step} repeats loss {loss} and gradient norm {norm} of the step before bit for bit: "
                "no data was read")
    return None


def every_parameter_has_a_gradient(observed: StepObservation, state: InvariantState) -> str | None:
    """A parameter with an exactly zero gradient is not part of the loss."""
    names = observed.measured.no_gradient
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"at step {observed.step} the gradient of {', '.join(names[:3])}{more} is exactly zero: "
            "backward does not reach it")


def clipped_as_declared(observed: StepObservation, state: InvariantState) -> str | None:
    """After clipping, the global norm is the smaller of the norm before and the limit."""
    wanted, found = min(observed.measured.grad_norm, CLIP), observed.measured.clipped_norm
    if abs(found - wanted) <= CLIP_TOLERANCE * wanted:
        return None
    return (
        f"at step {observed.step} the gradient norm after clipping is {found:.6g}; min(norm, {CLIP:g}) is {wanted:.6g}"
    )


def rate_as_declared(observed: StepObservation, state: InvariantState) -> str | None:
    """The optimizer holds the scheduled rate, and its first step moves a vector's element by that rate."""
    wanted, found, move = learning_rate(observed.plan, observed.step), observed.measured.lr, observed.measured.top_move
    if found != wanted:
        return (
            f"at step {observed.step} the optimizer's learning rate is {found:.6g}; the schedule declares {wanted:.6g}"
        )
    if observed.is_first and move is not None and abs(move - wanted) > MOVE_TOLERANCE * wanted + HALF_ULP_OF_1:
        return (f"the first step moved norm weights by up to {move:.6g}; AdamW at the declared rate moves them by "
                f"{wanted:.6g}")
    return None


def batch_is_new(observed: StepObservation, state: InvariantState) -> str | None:
    """No batch comes twice in an epoch of the data."""
    if observed.batch_hash in state.hashes and observed.data_epoch == state.data_epoch:
        return (
            f"the batch of step {observed.step} ({observed.batch_hash}) was trained on before in this epoch of the data"
        )
    return None


def cursor_moves_on(observed: StepObservation, state: InvariantState) -> str | None:
    """The data order goes forward by one batch a step."""
    if observed.cursor == state.cursor:
        return None
    return (f"step {observed.step} reads from window {observed.cursor} of the data order; the step before ended at "
            f"{state.cursor}")


RULES: tuple[tuple[str, str, Rule], ...] = (
    ("INV-FINITE", "loss and gradient norm are finite", finite),
    ("INV-LOSS", "loss is above 0 and not repeated bit for bit", loss_is_measured),
    ("INV-GRADIENT", "every parameter has a gradient that is not exactly zero", every_parameter_has_a_gradient),
    ("INV-CLIP", f"norm after clipping = min(norm, {CLIP:g})", clipped_as_declared),
    ("INV-RATE", "the rate used is the rate declared", rate_as_declared),
    ("INV-BATCH", "no batch comes twice in an epoch of the data", batch_is_new),
    ("INV-CURSOR", "the data order goes forward", cursor_moves_on),
)


def first_violation(observed: StepObservation, state: InvariantState) -> tuple[str, str] | None:
    """Return the first broken rule's id and sentence."""
    for id, _, rule in RULES:
        sentence = rule(observed, state)
        if sentence is not None:
            return id, sentence
    return None


def rules_checked(observed: StepObservation, broke: str | None) -> list[str]:
    """List the rules that this step was held to: up to the one that it broke; gradients only where they were read."""
    ids = [id for id, _, _ in RULES]
    held = ids[: ids.index(broke) + 1] if broke in ids else ids
    return [id for id in held if id != "INV-GRADIENT" or observed.measured.grads is not None]


def remember(observed: StepObservation, state: InvariantState) -> None:
    """Take a sound step into memory."""
    if observed.data_epoch != state.data_epoch:
        state.hashes, state.data_epoch = set(), observed.data_epoch
    state.hashes.add(observed.batch_hash)
    state.last = (observed.measured.loss, observed.measured.grad_norm)
    state.cursor = observed.cursor + observed.plan.batch


def not_finite(names: Sequence[str], step: int) -> str | None:
    """The census of the weights."""
    if not names:
        return None
    return f"after step {step}, {len(names)} parameters hold NaN or Inf, {names[0]} first"


def schedule_notes(plan: Plan) -> tuple[str, ...]:
    """Say where a schedule does not fit its run."""
    last = learning_rate(plan, plan.steps - 1)
    if plan.steps > 1 and last > LR_LEFT * plan.lr:
        return (f"the learning rate ends at {last:.3g}, {last / plan.lr:.0%} of its peak: the schedule is made for a "
                "longer run",)
    return ()
