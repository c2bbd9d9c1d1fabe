"""Which few tensors of A's, put into B, bring a token's distribution back: chosen by how each moves the logits.

A tensor's share says how much of A's is blended into B's: W = (1 - share) W_B + share W_A. To first order a tensor
moves the logits by their slope in its share, taken halfway between the files. Kept are the moves of the LIKELY tokens
that A or B holds likeliest, and of the rest together (its log-sum-exp); the KL that a choice of tensors leaves follows
from the sum of their moves, so that a choice costs a sum, not a forward.
Shape letters: T tokens, R rows, C columns, D model, V vocabulary, K = LIKELY + 1 kept logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.damage.bill import is_same
from core.damage.gradient import ROWS_VALUES, head_blocks, run_with_graph
from core.damage.logits import head_weight
from core.model.matmul import expert_weight
from core.quant.dequantize import decode_rows, embedding_rows
from core.quant.weight import Weight
from core.system.arrays import Floats
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled
from core.trace.run import Side

LIKELY = 7
HALFWAY = 0.5  # where the slopes are taken
GAIN = 1e-9  # nats that an exchange must win


@dataclass(frozen=True, slots=True)
class Blend:
    """B's weights with A's blended in halfway. others: A's, where they are not B's; shares: what a gradient is by."""

    b: Side
    others: dict[str, Weight]
    shares: dict[str, Tensor]
    cancelled: IsCancelled

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Blended rows of a matrix."""
        w_RC, moved_RC = self.rows(weight, None, start, stop)
        return w_RC if moved_RC is None else w_RC + HALFWAY * moved_RC

    def rows(self, weight: Weight, expert: int | None, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """B's rows, and A's less B's where A has others."""
        if self.cancelled():
            raise Cancelled("the run was cancelled")
        other = self.others.get(weight.name)
        if expert is not None:
            weight, other = expert_weight(weight, expert), None if other is None else expert_weight(other, expert)
        w_RC = decode_rows(weight, start, stop)
        return w_RC, None if other is None else decode_rows(other, start, stop) - w_RC


def blend_of(a: Side, b: Side, cancelled: IsCancelled) -> Blend:
    """Find the matrices that A has otherwise; a norm or a bias is not blended."""
    pairs = {name: (a.model.file.weights.get(name), mine) for name, mine in b.model.file.weights.items()}
    others = {name: its for name, (its, mine) in pairs.items()
              if its is not None and len(mine.shape) >= 2 and its.shape == mine.shape and not is_same(its, mine)}
    return Blend(b, others, {name: torch.tensor(HALFWAY, requires_grad=True) for name in others}, cancelled)


class _Blended(torch.autograd.Function):
    """x W^T of a blended weight; its slope by the share is x (W_A - W_B)^T."""

    @staticmethod
    def forward(x_TC: Tensor, share: Tensor | None, weight: Weight, expert: int | None, blend: Blend) -> Tensor:
        parts = [x_TC @ (w if d is None else w + HALFWAY * d).T for w, d in _blocks(weight, expert, blend)]
        return torch.cat(parts, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        x_TC, _, *ctx.what = inputs
        ctx.save_for_backward(x_TC)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        (x_TC,), dy_TR = ctx.saved_tensors, grads[0]
        dx_TC: Tensor | float = 0.0
        slope: Tensor | None = None
        parts = torch.split(dy_TR, _step(ctx.what[0]), -1)
        for (w_RC, moved_RC), part_TR in zip(_blocks(*ctx.what), parts, strict=True):
            if moved_RC is not None:
                part = (part_TR * (x_TC @ moved_RC.T)).sum((-1, -2))
                slope = part if slope is None else slope + part
                w_RC = w_RC + HALFWAY * moved_RC
            dx_TC = dx_TC + part_TR @ w_RC
        return dx_TC, slope, None, None, None


def _blocks(weight: Weight, expert: int | None, blend: Blend) -> Iterator[tuple[Tensor, Tensor | None]]:
    rows, step = weight.shape[-2], _step(weight)
    for start in range(0, rows, step):
        yield blend.rows(weight, expert, start, min(start + step, rows))


def _step(weight: Weight) -> int:
    return max(1, ROWS_VALUES // weight.shape[-1])


@dataclass(frozen=True, slots=True)
class Shifts:
    """log_a, log_b: the kept log probabilities [K]; top: their tokens. moves: of each tensor, what it adds to log_b."""

    log_a: Floats
    log_b: Floats
    moves: dict[str, Floats]
    top: tuple[int, ...] = ()

    def left(self, chosen: Sequence[str]) -> float:
        """KL that A's tensors of these names would leave, in nats."""
        y_K = self.log_b + sum((self.moves[name] for name in chosen), np.zeros_like(self.log_b))
        return float((np.exp(self.log_a) * (self.log_a - y_K + np.logaddexp.reduce(y_K))).sum())

    def about(self, chosen: Sequence[str], y_V: Tensor) -> Shifts:
        """The same, so that this choice gives the logits that its graft gave."""
        known_K = kept(y_V.double().log_softmax(-1), torch.tensor(self.top))
        return replace(self, log_b=known_K - sum(self.moves[name] for name in chosen))


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
    """How every tensor that A has otherwise moves the logits [V] of the last token, by one backward pass for all K."""
    log_a, log_b = (y.double().log_softmax(-1) for y in (y_a, y_b))
    top_K = torch.maximum(log_a, log_b).topk(min(LIKELY, len(log_a) - 1)).indices
    kept_a, kept_b = kept(log_a, top_K), kept(log_b, top_K)
    blend, threads = blend_of(a, b, cancelled), torch.get_num_threads()
    if not blend.others:
        return Shifts(kept_a, kept_b, {})
    try:
        torch.set_num_threads(b.threads or threads)
        hidden_TD = run_with_graph(b.model, tokens, lambda x, weight, expert: _multiply(x, weight, expert, blend),
                                   lambda value_TD: _embedded(value_TD, tokens, blend))
        slopes_KD, own_K = _directions(hidden_TD.detach()[-1:], (log_a + log_b) / 2, top_K, blend)
        grad_KTD = torch.zeros(len(slopes_KD), *hidden_TD.shape)
        grad_KTD[:, -1] = slopes_KD
        found = torch.autograd.grad(hidden_TD, list(blend.shares.values()), grad_KTD, is_grads_batched=True,
                                    allow_unused=True)
    finally:
        torch.set_num_threads(threads)
    slopes = zip(blend.shares, found, strict=True)
    moves: dict[str, Floats] = {name: slope_K.double().numpy() for name, slope_K in slopes if slope_K is not None}
    head = head_weight(b.model).name
    moves[head] = moves.get(head, 0.0) + own_K.double().numpy()
    return Shifts(kept_a, kept_b, {n: moves[n] for n in sorted(moves) if moves[n].any()}, tuple(top_K.tolist()))


def _multiply(x_TC: Tensor, weight: Weight, expert: int | None, blend: Blend) -> Tensor:
    y_TR: Tensor = _Blended.apply(x_TC, blend.shares.get(weight.name), weight, expert, blend)  # type: ignore[no-untyped-call]
    return y_TR


def _embedded(value_TD: Tensor, tokens: Sequence[int], blend: Blend) -> Tensor:
    """B's embedding with A's rows blended in: the graph's root."""
    mine = blend.b.model.file.weight("token_embd.weight")
    other = blend.others.get(mine.name)
    if other is None:
        return value_TD.detach().requires_grad_()
    rows_TD, its_TD = (embedding_rows(w, list(tokens)) for w in (mine, other))
    return value_TD.detach() + blend.shares[mine.name] * (its_TD - rows_TD) * blend.b.model.arch.embed_scale


def kept(log_V: Tensor, top_K: Tensor) -> Floats:
    """The likely tokens' log probabilities, then that of all others."""
    others = torch.ones(len(log_V), dtype=torch.bool)
    others[top_K] = False
    found: Floats = torch.cat((log_V[top_K], log_V[others].logsumexp(0)[None])).numpy()
    return found


def _directions(last_1D: Tensor, log_V: Tensor, top_K: Tensor, blend: Blend) -> tuple[Tensor, Tensor]:
    """The slope of each kept logit by the final norm's output [K, D], and by the share of the head's own weights [K].

    log_V: log probabilities that share out the move of the tokens that are not kept.
    """
    share_V = log_V.exp()
    share_V[top_K] = 0
    share_V = (share_V / share_V.sum()).float()
    weight = head_weight(blend.b.model)
    slopes_KD, own_K = torch.zeros(len(top_K) + 1, last_1D.shape[1]), torch.zeros(len(top_K) + 1)
    for start, w_RD, _, slope_1R in head_blocks(blend.b.model, last_1D, blend):
        stop = start + len(w_RD)
        pick_KR = torch.zeros(len(top_K) + 1, len(w_RD))
        inside = (top_K >= start) & (top_K < stop)
        pick_KR[inside.nonzero()[:, 0], top_K[inside] - start] = 1
        pick_KR[-1] = share_V[start:stop]
        pick_KR *= slope_1R
        slopes_KD += pick_KR @ w_RD
        moved_RD = blend.rows(weight, None, start, stop)[1]
        if moved_RD is not None:
            own_K += pick_KR @ (moved_RD @ last_1D[0])
    return slopes_KD, own_K
