"""Why a token went wrong: the earliest stage whose graft of A's value brings it back, the fewest tensors that do.

Shape letters: T tokens up to the worst one, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.damage.exact import with_weights
from core.damage.few_tensors import Shifts, choices, shifts_of
from core.damage.kl import compare_logits
from core.damage.logits import hidden_states, logits, untapped
from core.model.model import Tap
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
    values: dict[Place, Tensor] = {}
    hidden_a, hidden_b = hidden_states((a, b), tokens, [_keep(values), untapped(1)[0]], cancelled)
    whole = _kl_last(a, b, hidden_a, hidden_b, cancelled)
    if not whole > 0:
        return Cause(None, None)

    def recovered(side: Side, tap: Tap) -> float:
        hidden = hidden_states([side], tokens, [tap], cancelled)[0]
        return 1 - _kl_last(a, side, hidden_a, hidden, cancelled) / whole

    place, back = _earliest(a, values, lambda p: recovered(b, patch({p: lambda old: values[p].to(old)})))
    y_a, y_b = (logits(s, h[-1:], cancelled)[0] for s, h in ((a, hidden_a), (b, hidden_b)))
    shifts = shifts_of(a, b, tokens, y_a, y_b, cancelled)
    return Cause(place, back, *_fewest_tensors(shifts, a, b, lambda side: recovered(side, untapped(1)[0])))


def _keep(into: dict[Place, Tensor]) -> Tap:
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage != "logits":
            into[layer, stage] = value.clone()
        return value
    return tap


def _kl_last(a: Side, b: Side, hidden_a: Tensor, hidden_b: Tensor, cancelled: IsCancelled) -> float:
    y_a, y_b = logits(a, hidden_a[-1:], cancelled), logits(b, hidden_b[-1:], cancelled)
    return float(compare_logits(y_a, y_b, torch.zeros(1, dtype=torch.long))[0])


def _earliest(
    a: Side, values: dict[Place, Tensor], recovers: Callable[[Place], float]
) -> tuple[Place | None, float | None]:
    """Halve the layers by their outputs, then try each stage of the layer in order; the head where nothing does."""
    low, high = 0, a.model.arch.n_layer - 1
    last = recovers((high, "output"))
    if last < RECOVERED:
        back = recovers((None, "final_norm"))
        return ((None, "final_norm"), back) if back >= RECOVERED else (None, None)
    found: tuple[Place, float] = ((high, "output"), last)
    while low < high:
        middle = (low + high) // 2
        back = recovers((middle, "output"))
        if back >= RECOVERED:
            high, found = middle, ((middle, "output"), back)
        else:
            low = middle + 1
    for stage in a.model.arch.layers[low].nodes:
        if stage != "output" and (low, stage) in values:
            back = recovers((low, stage))
            if back >= RECOVERED:
                return (low, stage), back
    return found


def _fewest_tensors(
    shifts: Shifts, a: Side, b: Side, recovers: Callable[[Side], float]
) -> tuple[tuple[str, ...], float | None]:
    """The smallest choice of A's tensors that brings enough back, and what it does; else the one that brings most."""
    best: tuple[tuple[str, ...], float | None] = ((), None)
    for names in choices(shifts, MOST_TENSORS):
        back = recovers(with_weights(b, {name: a.model.file.weight(name) for name in names}))
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
