"""Run a forward with a gradient through its packed weights, and bill each tensor with g^2 times a variance.

The share of a tensor in the output's KL, to second order: 1/2 sum over weights of E[g^2] v, with E[g^2] the diagonal of
the Fisher information, by gradients along random directions of the logits, and v the variance, or the square, of the
weight's error. A weight's gradient lives only as long as it is squared, and a decoded weight as long as it is
multiplied: the memory is the file, one decoded tensor, and the activations of a chunk.
Shape letters: T tokens, N rows of experts, R rows, C columns, V vocabulary, D model, K draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from core.damage.logits import head_weight
from core.damage.steps import GROUP
from core.model.forward import forward
from core.model.matmul import expert_weight
from core.model.model import Cache, Model, Product
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight
from core.system.arrays import Floats
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled

ROWS_VALUES = 1 << 22  # weights decoded at a time: 16 MiB of float32
Multiply = Callable[[Tensor, Weight, int | None], Tensor]  # x [T, C], weight, which expert of it -> x W^T [T, R]
ErrorSquare = Callable[[Weight, int, int], Tensor]  # weight, first row, end -> [R, C] or one number for GROUP columns


class Decoder(Protocol):
    """What decodes rows of a weight, and may make them others."""

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor: ...


class Charged(Decoder, Protocol):
    """What a backward pass decodes weights with, and tells the gradient of rows of a weight or of its expert to."""

    @property
    def draws(self) -> int: ...  # random directions at each position
    def add(self, weight: Weight, expert: int | None, start: int, grad_RC: Tensor) -> None: ...


@dataclass(slots=True)
class Bill:
    """KL in nats a token that each tensor costs, summed over its rows; tensors: rows' shares by the tensor's name.

    noise: the seed of an error of that square (of GROUP columns) which every weight has beside its own; None: none.
    """

    error_square: ErrorSquare
    cancelled: IsCancelled
    draws: int = 1
    noise: int | None = None
    tensors: dict[str, Floats] = field(default_factory=dict)

    def add(self, weight: Weight, expert: int | None, start: int, grad_RC: Tensor) -> None:
        """Charge rows from start of a weight with their gradient's square."""
        part = weight if expert is None else expert_weight(weight, expert)
        square = self.error_square(part, start, start + len(grad_RC))
        g2 = grad_RC.square()
        if square.shape[1] != g2.shape[1]:
            g2 = torch.nn.functional.pad(g2, (0, -g2.shape[1] % GROUP)).view(len(g2), -1, GROUP).sum(-1)
        rows = (g2 * square).sum(-1).double().numpy() / (2 * self.draws)
        known = self.tensors.setdefault(weight.name, np.zeros(int(np.prod(weight.shape[:-1]))))
        at = (0 if expert is None else expert * weight.shape[-2]) + start
        known[at:at + len(rows)] += rows

    def of(self, name: str) -> float:
        """What a tensor was charged so far."""
        rows = self.tensors.get(name)
        return 0.0 if rows is None else float(rows.sum())

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Rows start to stop [R, C], noise included; Cancelled where it was asked for."""
        if self.cancelled():
            raise Cancelled("the run was cancelled")
        w_RC = decode_rows(weight, start, stop)
        if self.noise is None:
            return w_RC
        seed = zlib.crc32(f"{self.noise} {weight.name} {start}".encode())
        width_RC = (12 * self.error_square(weight, start, stop)).sqrt().repeat_interleave(GROUP, 1)[:, :w_RC.shape[1]]
        uniform = torch.rand(w_RC.shape, generator=torch.Generator().manual_seed(seed))
        return w_RC.add_(uniform.sub_(0.5).mul_(width_RC))


class _Packed(torch.autograd.Function):
    """x W^T of a packed weight; its backward bills the weight's gradient and keeps none."""

    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, weight: Weight, expert: int | None, bill: Charged) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x_TC)
        ctx.weight, ctx.expert, ctx.bill = weight, expert, bill
        parts = [x_TC @ w_RC.T for _, w_RC in rows_of(weight, expert, bill)]
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (x_TC,), dy_TR = ctx.saved_tensors, grads[0]
        dx_TC = torch.zeros_like(x_TC)
        for start, w_RC in rows_of(ctx.weight, ctx.expert, ctx.bill):
            part = dy_TR[:, start:start + len(w_RC)]
            dx_TC += part @ w_RC
            ctx.bill.add(ctx.weight, ctx.expert, start, part.T @ x_TC)
        return dx_TC, None, None, None


def rows_of(weight: Weight, expert: int | None, decoder: Decoder) -> Iterator[tuple[int, Tensor]]:
    """Decode a weight some rows at a time."""
    part = weight if expert is None else expert_weight(weight, expert)
    rows, cols = part.shape
    step = max(1, ROWS_VALUES // cols)
    for start in range(0, rows, step):
        yield start, decoder.decode(part, start, min(start + step, rows))


def add_to_bill(model: Model, tokens: Sequence[int], bill: Charged, generator: torch.Generator) -> None:
    """Charge every tensor that a chunk of T tokens goes through, bill.draws draws a token; float32 on the CPU."""
    hidden_TD = hidden_with_graph(model, tokens, bill)
    grads_KTD = head_gradients(model, hidden_TD.detach(), bill, generator)
    for k, grad_TD in enumerate(grads_KTD):
        torch.autograd.backward(hidden_TD, grad_TD, retain_graph=k + 1 < bill.draws)


def hidden_with_graph(model: Model, tokens: Sequence[int], bill: Charged) -> Tensor:
    """The output of the final norm [T, D], with a graph whose backward pass charges the bill."""
    return run_with_graph(model, tokens, lambda x, weight, expert: _packed(x, weight, expert, bill),
                          lambda value_TD: _embedding(model, tokens, value_TD, bill))


def run_with_graph(
    model: Model, tokens: Sequence[int], product: Multiply, root: Callable[[Tensor], Tensor]
) -> Tensor:
    """The output of the final norm [T, D], with the graph that the products and the embedding's root make."""
    found: list[Tensor] = []

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage == "final_norm":
            found.append(value)
        return root(value) if stage == "embedding" else value

    steps, y = forward(model, tokens, tap, Cache()), None
    with torch.enable_grad():
        while not found:
            try:
                ask = next(steps) if y is None else steps.send(y)
            except StopIteration:
                break
            if not found:
                y = _answer(ask, product)
    steps.close()
    return found[0]


def _embedding(model: Model, tokens: Sequence[int], value_TD: Tensor, bill: Charged) -> Tensor:
    """The embedding as the graph's root, which charges the rows of its tokens; a token's gradients are summed first."""
    weight, scale = model.file.weight("token_embd.weight"), model.arch.embed_scale
    ids, at_T = torch.unique(torch.tensor(list(tokens)), return_inverse=True)

    def charge(grad_TD: Tensor) -> None:
        sums = torch.zeros(len(ids), grad_TD.shape[1]).index_add_(0, at_T, grad_TD * scale)
        for row, grad in zip(ids.tolist(), sums, strict=True):
            bill.add(weight, None, row, grad[None])

    root = value_TD.detach().requires_grad_()
    root.register_hook(charge)  # type: ignore[no-untyped-call]
    return root


def _answer(ask: Product, product: Multiply) -> Tensor:
    """The product that a forward asks for, by expert where it has experts."""
    if ask.experts is None:
        return _flat(product, ask.x, ask.weight, None)
    order, parts = [], []
    for expert in sorted(set(ask.experts.tolist())):
        at_N = (ask.experts == expert).nonzero()[:, 0]
        order.append(at_N)
        parts.append(_flat(product, ask.x[at_N], ask.weight, expert))
    back_N = torch.cat(order).argsort()
    return torch.cat(parts)[back_N]


def _flat(product: Multiply, x: Tensor, weight: Weight, expert: int | None) -> Tensor:
    y = product(x.reshape(-1, x.shape[-1]), weight, expert)
    return y.view(*x.shape[:-1], y.shape[-1])


def _packed(x_TC: Tensor, weight: Weight, expert: int | None, bill: Charged) -> Tensor:
    y_TR: Tensor = _Packed.apply(x_TC, weight, expert, bill)  # type: ignore[no-untyped-call]
    return y_TR


def head_gradients(model: Model, hidden_TD: Tensor, bill: Charged, generator: torch.Generator) -> Tensor:
    """K random directions at each position whose mean square is the Fisher information there: [K, T, D].

    By the logits a direction is z = sqrt(p) s - p sum(sqrt(p) s) with random signs s, so that E[z z^T] is
    diag(p) - p p^T, as of tokens drawn from p, but without their rare, large values. The head is billed on the way.
    Two passes over the head's rows: the first finds each position's normaliser and the sum, the second the directions.
    """
    weight, n_token = head_weight(model), len(hidden_TD)
    seeds = torch.randint(1 << 40, (bill.draws,), generator=generator).tolist()
    peak_T, sum_T, mixed_KT = torch.full((n_token,), -torch.inf), torch.zeros(n_token), torch.zeros(bill.draws, n_token)
    for start, _, y_TR, _ in head_blocks(model, hidden_TD, bill):
        higher_T = torch.maximum(peak_T, y_TR.amax(-1))
        fall_T, part_TR = (peak_T - higher_T).exp(), (y_TR - higher_T[:, None]).exp()
        sum_T = sum_T * fall_T + part_TR.sum(-1)
        for k, seed in enumerate(seeds):
            mixed_KT[k] = mixed_KT[k] * fall_T.sqrt() + (part_TR.sqrt() * signs(seed + start, part_TR)).sum(-1)
        peak_T = higher_T
    total_T = peak_T + sum_T.log()
    grads_KTD = torch.zeros(bill.draws, *hidden_TD.shape)
    for start, w_RD, y_TR, slope_TR in head_blocks(model, hidden_TD, bill):
        p_TR = (y_TR - total_T[:, None]).exp()
        for k, seed in enumerate(seeds):
            z_TR = p_TR.sqrt() * signs(seed + start, p_TR) - p_TR * (mixed_KT[k] / sum_T.sqrt())[:, None]
            z_TR *= slope_TR
            grads_KTD[k] += z_TR @ w_RD
            bill.add(weight, None, start, z_TR.T @ hidden_TD)
    return grads_KTD


def signs(seed: int, like: Tensor) -> Tensor:
    """Random signs of that shape, 1 or -1."""
    return torch.randint(2, like.shape, generator=torch.Generator().manual_seed(seed)).to(like) * 2 - 1


def head_blocks(
    model: Model, hidden_TD: Tensor, decoder: Decoder
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield the head's rows: the first, the weights [R, D], the logits [T, R], and their slope by the bare product."""
    scale, cap = model.arch.logit_scale, model.arch.logit_cap
    bias = model.vector(model.head + ".bias")
    for start, w_RD in rows_of(head_weight(model), None, decoder):
        y_TR = hidden_TD @ w_RD.T
        y_TR = (y_TR if bias is None else y_TR + bias[start:start + len(w_RD)]) * scale
        slope_TR = torch.full_like(y_TR, scale)
        if cap:
            y_TR = cap * torch.tanh(y_TR / cap)
            slope_TR = scale * (1 - (y_TR / cap) ** 2)
        yield start, w_RD, y_TR, slope_TR
