"""Which few tensors of A's, put into B, bring a token's distribution back: chosen by how each moves the logits.

To first order a tensor moves B's logits by their slope times (A's - B's weights). Kept are the moves of the LIKELY
tokens that A or B holds likeliest, and of the rest together (its log-sum-exp); the KL that a choice of tensors leaves
follows from the sum of their moves, so that a choice costs a sum, not a forward.
Shape letters: T tokens, R rows, C columns, D model, V vocabulary, K = LIKELY + 1 kept logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from core.damage.gradient import head_blocks, hidden_with_graph
from core.damage.logits import head_weight
from core.model.matmul import expert_weight
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight
from core.system.arrays import Floats
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled
from core.trace.run import Side

LIKELY = 7
GAIN = 1e-9  # nats that an exchange must win


@dataclass(slots=True)
class Moves:
    """The sum of gradient times distance to A's weights of each tensor, for one direction after the other."""

    a: Side
    cancelled: IsCancelled
    draws: int = 1
    tensors: dict[str, float] = field(default_factory=dict)

    def add(self, weight: Weight, expert: int | None, start: int, grad_RC: Tensor) -> None:
        """Take rows' part."""
        moved_RC = self.moved(weight, expert, start, start + len(grad_RC))
        if moved_RC is not None:
            self.tensors[weight.name] = self.tensors.get(weight.name, 0.0) + float((grad_RC * moved_RC).sum())

    def moved(self, weight: Weight, expert: int | None, start: int, stop: int) -> Tensor | None:
        """A's rows less these; None where A has no such tensor."""
        other = self.a.model.file.weights.get(weight.name)
        if other is None or other.shape != weight.shape:
            return None
        mine, its = (w if expert is None else expert_weight(w, expert) for w in (weight, other))
        return decode_rows(its, start, stop) - decode_rows(mine, start, stop)

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Rows as they are."""
        if self.cancelled():
            raise Cancelled("the run was cancelled")
        return decode_rows(weight, start, stop)


@dataclass(frozen=True, slots=True)
class Shifts:
    """log_a, log_b: the kept log probabilities [K]. moves: of each tensor, what it adds to b's [K]."""

    log_a: Floats
    log_b: Floats
    moves: dict[str, Floats]

    def left(self, chosen: Sequence[str]) -> float:
        """KL that A's tensors of these names would leave, in nats."""
        y_K = self.log_b + sum((self.moves[name] for name in chosen), np.zeros_like(self.log_b))
        return float((np.exp(self.log_a) * (self.log_a - y_K + np.logaddexp.reduce(y_K))).sum())


def choices(shifts: Shifts, most: int) -> Iterator[tuple[str, ...]]:
    """Yield the best choice of one tensor, two, ... most: the last with one more, then exchanged while that helps."""
    chosen: list[str] = []
    for _ in range(min(most, len(shifts.moves))):
        chosen = _with_best(shifts, chosen)
        at, still = 0, 0
        while still < len(chosen):
            other = _with_best(shifts, chosen[:at] + chosen[at + 1:])
            better = shifts.left(other) < shifts.left(chosen) - GAIN
            chosen, still = (other, 0) if better else (chosen, still + 1)
            at = 0 if better else at + 1
        yield tuple(chosen)


def _with_best(shifts: Shifts, chosen: list[str]) -> list[str]:
    return [*chosen, min((n for n in shifts.moves if n not in chosen), key=lambda n: shifts.left([*chosen, n]))]


def shifts_of(a: Side, b: Side, tokens: Sequence[int], y_a: Tensor, y_b: Tensor, cancelled: IsCancelled) -> Shifts:
    """How every tensor that A has otherwise moves the logits [V] of the last token, one backward pass a direction."""
    log_a, log_b = (y.double().log_softmax(-1) for y in (y_a, y_b))
    top_K = torch.maximum(log_a, log_b).topk(min(LIKELY, len(log_a) - 1)).indices
    moves = Moves(a, cancelled)
    hidden_TD = hidden_with_graph(b.model, tokens, moves)
    slopes_KD, found_K = _directions(b, hidden_TD.detach()[-1:], log_b, top_K, moves)
    for k, slope_D in enumerate(slopes_KD):
        moves.tensors = found_K[k]
        grad_TD = torch.zeros_like(hidden_TD)
        grad_TD[-1] = slope_D
        torch.autograd.backward(hidden_TD, grad_TD, retain_graph=k + 1 < len(slopes_KD))
    names = {name for found in found_K for name in found}
    rows = {name: np.array([found.get(name, 0.0) for found in found_K]) for name in sorted(names)}
    return Shifts(_kept(log_a, top_K), _kept(log_b, top_K), {n: row for n, row in rows.items() if row.any()})


def _kept(log_V: Tensor, top_K: Tensor) -> Floats:
    """The likely tokens' log probabilities, then that of all others."""
    others = torch.ones(len(log_V), dtype=torch.bool)
    others[top_K] = False
    kept: Floats = torch.cat((log_V[top_K], log_V[others].logsumexp(0)[None])).numpy()
    return kept


def _directions(
    b: Side, last_1D: Tensor, log_b: Tensor, top_K: Tensor, moves: Moves
) -> tuple[Tensor, list[dict[str, float]]]:
    """The slope of each kept logit by the final norm's output [K, D], and what the head's own weights move it by."""
    share_V = log_b.exp()
    share_V[top_K] = 0
    share_V = (share_V / share_V.sum()).float()
    weight = head_weight(b.model)
    slopes_KD, own_K = torch.zeros(len(top_K) + 1, last_1D.shape[1]), torch.zeros(len(top_K) + 1)
    for start, w_RD, _, slope_1R in head_blocks(b.model, last_1D, moves):
        stop = start + len(w_RD)
        pick_KR = torch.zeros(len(top_K) + 1, len(w_RD))
        inside = (top_K >= start) & (top_K < stop)
        pick_KR[inside.nonzero()[:, 0], top_K[inside] - start] = 1
        pick_KR[-1] = share_V[start:stop]
        pick_KR *= slope_1R
        slopes_KD += pick_KR @ w_RD
        moved_RD = moves.moved(weight, None, start, stop)
        if moved_RD is not None:
            own_K += pick_KR @ (moved_RD @ last_1D[0])
    return slopes_KD, [{weight.name: float(own)} for own in own_K]
