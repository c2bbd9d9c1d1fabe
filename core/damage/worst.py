"""Why a token went wrong: the earliest stage whose graft of A's value brings it back, the fewest tensors that do.

Shape letters: T tokens up to the worst one, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.damage.exact import with_weights
from core.damage.gradient import hidden_with_graph, rows_of
from core.damage.kl import compare_logits
from core.damage.logits import capped, head_weight, hidden_states, logits, untapped
from core.model.matmul import expert_weight
from core.model.model import Tap
from core.model.stages import Place, place_text
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled
from core.trace.run import Side
from core.trace.taps import patch

RECOVERED = 0.9   # of the token's KL
MOST_TENSORS = 5


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a token's KL is what it is. place: None where no graft brings it back; recovered: what that graft does.

    tensors: the fewest of A's in B that bring it back too, in order of choice; none where MOST_TENSORS do not.
    """

    place: Place | None
    recovered: float | None
    tensors: tuple[str, ...] = ()


@dataclass(slots=True)
class Pull:
    """How far each tensor, moved to A's, would change the token's KL to first order: sum of gradient times distance."""

    a: Side
    cancelled: IsCancelled
    tensors: dict[str, float] = field(default_factory=dict)

    def add(self, weight: Weight, expert: int | None, start: int, grad_RC: Tensor) -> None:
        """Take rows' part."""
        other = self.a.model.file.weights.get(weight.name)
        if other is None or other.shape != weight.shape:
            return
        mine, its = (w if expert is None else expert_weight(w, expert) for w in (weight, other))
        stop = start + len(grad_RC)
        moved = decode_rows(its, start, stop) - decode_rows(mine, start, stop)
        self.tensors[weight.name] = self.tensors.get(weight.name, 0.0) + float((grad_RC * moved).sum())

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Rows as they are."""
        if self.cancelled():
            raise Cancelled("the run was cancelled")
        return decode_rows(weight, start, stop)


def cause_of(a: Side, b: Side, tokens: Sequence[int], cancelled: IsCancelled) -> Cause:
    """Why B's last token differs from A's: grafts by halving the layers, then by stage; tensors, strongest first."""
    values: dict[Place, Tensor] = {}
    hidden_a, hidden_b = hidden_states((a, b), tokens, [_keep(values), untapped(1)[0]], cancelled)
    whole = _kl_last(a, b, hidden_a, hidden_b, cancelled)
    if not whole > 0:
        return Cause(None, None)

    def recovered(side: Side, tap: Tap) -> float:
        hidden = hidden_states([side], tokens, [tap], cancelled)[0]
        return 1 - _kl_last(a, side, hidden_a, hidden, cancelled) / whole

    place, back = _earliest(a, values, lambda p: recovered(b, patch({p: lambda old: values[p].to(old)})))
    names = _fewest_tensors(a, b, tokens, hidden_a, lambda side: recovered(side, untapped(1)[0]), cancelled)
    return Cause(place, back, names)


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
    a: Side, b: Side, tokens: Sequence[int], hidden_a: Tensor, recovers: Callable[[Side], float],
    cancelled: IsCancelled,
) -> tuple[str, ...]:
    """Put A's tensors into B, each time the one that the gradient says brings most, until enough is back."""
    chosen: dict[str, Weight] = {}
    while len(chosen) < MOST_TENSORS:
        side = with_weights(b, chosen)
        pull = _pulls(a, side, tokens, hidden_a, cancelled)
        name = min((n for n in pull if n not in chosen), key=lambda n: pull[n], default=None)
        if name is None or pull[name] >= 0:
            break
        chosen[name] = a.model.file.weight(name)
        if recovers(with_weights(b, chosen)) >= RECOVERED:
            return tuple(chosen)
    return ()


def _pulls(a: Side, b: Side, tokens: Sequence[int], hidden_a: Tensor, cancelled: IsCancelled) -> dict[str, float]:
    """The first-order change of the last token's KL(A || B) by each of A's tensors."""
    pull = Pull(a, cancelled)
    hidden_TD = hidden_with_graph(b.model, tokens, pull)
    y_a = logits(a, hidden_a[-1:], cancelled)
    last_1D = hidden_TD.detach()[-1:].requires_grad_()
    with torch.enable_grad():
        y_1V = torch.cat([last_1D @ w_RD.T for _, w_RD in rows_of(head_weight(b.model), None, pull)], -1)
        y_1V.retain_grad()
        kl = torch.nn.functional.kl_div(capped(b.model, y_1V).log_softmax(-1), y_a.clone().log_softmax(-1),
                                        log_target=True, reduction="sum")
    torch.autograd.backward(kl)
    assert last_1D.grad is not None and y_1V.grad is not None
    for start, w_RD in rows_of(head_weight(b.model), None, pull):
        pull.add(head_weight(b.model), None, start, y_1V.grad[:, start:start + len(w_RD)].T @ last_1D.detach())
    grad_TD = torch.zeros_like(hidden_TD)
    grad_TD[-1:] = last_1D.grad
    torch.autograd.backward(hidden_TD, grad_TD)
    return pull.tensors


def text_of(cause: Cause) -> str:
    """The cause in a line."""
    if cause.place is None:
        return "no graft brings it back"
    tensors = f"; so do {', '.join(cause.tensors)}" if cause.tensors else f"; no {MOST_TENSORS} tensors do"
    return f"{place_text(cause.place)} brings back {cause.recovered:.0%}{tensors}"
