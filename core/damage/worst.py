"""Why a token went wrong: the earliest stage whose graft of A's value brings it back, the fewest tensors that do.

Shape letters: T tokens up to the worst one, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.damage.exact import first_layer, with_weights
from core.damage.few_tensors import Shifts, choices, shifts_of
from core.damage.kl import compare_logits
from core.damage.logits import hidden_states, logits, untapped
from core.model.model import Resume, Tap
from core.model.stages import Place, place_text
from core.system.cancel import IsCancelled
from core.trace.run import Side
from core.trace.taps import patch

RECOVERED = 0.9   # of the token's KL
MOST_TENSORS = 5


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a token's KL is what it is. place: None where no graft brings it back; recovered: what that graft does.

    nearest: the few of A's tensors in B that bring most of it back, and nearest_recovered how much that is.
    """

    place: Place | None
    recovered: float | None
    nearest: tuple[str, ...] = ()
    nearest_recovered: float | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The fewest tensors that bring the token back; none where MOST_TENSORS do not."""
        return self.nearest if (self.nearest_recovered or 0.0) >= RECOVERED else ()


def cause_of(a: Side, b: Side, tokens: Sequence[int], cancelled: IsCancelled) -> Cause:
    """Why B's last token differs from A's: grafts by halving the layers, then by stage; then tensors."""
    outputs_a: dict[Place, Tensor] = {}
    outputs_b: dict[Place, Tensor] = {}
    hidden_a, hidden_b = hidden_states((a, b), tokens, [_keep(outputs_a, is_output), _keep(outputs_b, is_output)],
                                       cancelled)
    whole = _kl_last(a, b, hidden_a, hidden_b, cancelled)
    if not whole > 0:
        return Cause(None, None)

    def recovered(side: Side, tap: Tap, layer: int, before: dict[Place, Tensor]) -> float:
        resume = _resume_at(side, layer, before)
        hidden = hidden_states([side], tokens, [tap], cancelled, resume)[0]
        return 1 - _kl_last(a, side, hidden_a, hidden, cancelled) / whole

    def graft(place: Place, value: Tensor) -> float:
        layer = place[0] if place[0] is not None else a.model.arch.n_layer
        return recovered(b, patch({place: lambda old: value.to(old)}), layer, outputs_b)

    def stages(layer: int) -> dict[Place, Tensor]:
        kept: dict[Place, Tensor] = {}
        tap = _keep(kept, lambda place: place[0] == layer)
        hidden_states([a], tokens, [tap], cancelled, _resume_at(a, layer, outputs_a))
        return kept

    outputs_a[None, "final_norm"] = hidden_a
    place, back = _earliest(a.model.arch.n_layer, outputs_a, graft, stages)
    y_a, y_b = (logits(s, h[-1:], cancelled)[0] for s, h in ((a, hidden_a), (b, hidden_b)))
    shifts = shifts_of(a, b, tokens, y_a, y_b, cancelled)
    return Cause(place, back, *_fewest_tensors(shifts, a, b, lambda side, layer: recovered(
        side, untapped(1)[0], layer, outputs_b)))


def is_output(place: Place) -> bool:
    """Whether it is the residual stream after a layer."""
    return place[1] == "output"


def _resume_at(side: Side, layer: int, outputs: dict[Place, Tensor]) -> Resume | None:
    """Go on before that layer from what the one before gave; None: from the tokens, as a planted bug needs."""
    x_TD = outputs.get((layer - 1, "output"))
    return None if x_TD is None or side.plant or not side.model.arch.can_resume else Resume(layer, x_TD)


def _keep(into: dict[Place, Tensor], is_wanted: Callable[[Place], bool]) -> Tap:
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if is_wanted((layer, stage)):
            into[layer, stage] = value.clone()
        return value
    return tap


def _kl_last(a: Side, b: Side, hidden_a: Tensor, hidden_b: Tensor, cancelled: IsCancelled) -> float:
    y_a, y_b = logits(a, hidden_a[-1:], cancelled), logits(b, hidden_b[-1:], cancelled)
    return float(compare_logits(y_a, y_b, torch.zeros(1, dtype=torch.long))[0])


def _earliest(
    n_layer: int, outputs: dict[Place, Tensor], graft: Callable[[Place, Tensor], float],
    stages: Callable[[int], dict[Place, Tensor]],
) -> tuple[Place | None, float | None]:
    """Halve the layers by their outputs, then try each stage of the layer in order; the head where nothing does."""
    low, high = 0, n_layer - 1
    found, back = (high, "output"), graft((high, "output"), outputs[high, "output"])
    if back < RECOVERED:
        norm = (None, "final_norm")
        back = graft(norm, outputs[norm])
        return (norm, back) if back >= RECOVERED else (None, None)
    while low < high:
        middle = (low + high) // 2
        again = graft((middle, "output"), outputs[middle, "output"])
        if again >= RECOVERED:
            high, found, back = middle, (middle, "output"), again
        else:
            low = middle + 1
    for place, value in stages(low).items():
        if not is_output(place):
            again = graft(place, value)
            if again >= RECOVERED:
                return place, again
    return found, back


def _fewest_tensors(
    shifts: Shifts, a: Side, b: Side, recovers: Callable[[Side, int], float]
) -> tuple[tuple[str, ...], float | None]:
    """The smallest choice of A's tensors that brings enough back, and what it does; else the one that brings most."""
    best: tuple[tuple[str, ...], float | None] = ((), None)
    for names in choices(shifts, MOST_TENSORS):
        first = min(first_layer(name, a.model.arch.n_layer) for name in names)
        back = recovers(with_weights(b, {name: a.model.file.weight(name) for name in names}), first)
        if best[1] is None or back > best[1]:
            best = names, back
        if back >= RECOVERED:
            break
    return best


def text_of(cause: Cause) -> str:
    """The cause in a line."""
    if cause.place is None:
        return "no graft brings it back"
    told = f"{', '.join(cause.nearest)} ({cause.nearest_recovered or 0.0:.0%})"
    tensors = "" if not cause.nearest else f"; so do {told}" if cause.tensors else (
        f"; no {MOST_TENSORS} tensors do, nearest {told}")
    return f"{place_text(cause.place)} brings back {cause.recovered:.0%}{tensors}"


def cause_to(cause: Cause) -> dict[str, Any]:
    """The cause as a JSON value that cause_from reads."""
    return {"place": cause.place, "recovered": cause.recovered, "nearest": cause.nearest,
            "nearest_recovered": cause.nearest_recovered}


def cause_from(told: dict[str, Any]) -> Cause:
    """The cause that cause_to wrote."""
    place = told["place"]
    return Cause(None if place is None else (place[0], place[1]), told["recovered"], tuple(told["nearest"]),
                 told["nearest_recovered"])
