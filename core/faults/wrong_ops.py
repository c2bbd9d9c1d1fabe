"""Compute a stage's value as a wrong kernel would, from the stage's own inputs. Never part of the forward.

Each function takes a StageInputs and returns what the bug leaves in the value's place. value_faults.py gives the names.
Shape letters: T tokens, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from core.faults.stage_inputs import StageInputs, full_name
from core.kernels.cpu.decoding import decode_rows
from core.model.layers import Attention, Rope
from core.model.mixers.attention import attend_by, heat
from core.model.ops import activate, gated, layer_norm, rms_norm, rms_scale, rope_angles, rotate
from core.quant.activations import q8_0, q8_k, q8_kind
from core.quant.types import QUANTS

BLOCK = 32
WRONG_EPS = 1e-3


def other_products(inputs: StageInputs, product: object) -> Tensor:
    """The stage's linear map with product(matrix name, matrix, input) in place of every multiplication."""
    x, parts = inputs.input(), []
    for name in inputs.weights:
        y = product(inputs, name, x)  # type: ignore[operator]
        bias = inputs.bias(name)
        parts.append(y if bias is None else y + bias)
    return inputs.rows(torch.cat(parts, -1))


def no_bias(inputs: StageInputs) -> Tensor:
    """The products without their biases."""
    x = inputs.input()
    return inputs.rows(torch.cat([x @ inputs.matrix(name).T for name in inputs.weights], -1))


def transposed(inputs: StageInputs) -> Tensor:
    """Each matrix read as if it stood in memory by columns: [rows, cols] bytes taken as [cols, rows]."""
    def product(s: StageInputs, name: str, x: Tensor) -> Tensor:
        w = s.matrix(name)
        return x @ w.reshape(w.shape[1], w.shape[0])
    return other_products(inputs, product)


def last_block_dropped(inputs: StageInputs) -> Tensor:
    """The sum stops one block of 32 inputs too early."""
    def product(s: StageInputs, name: str, x: Tensor) -> Tensor:
        return x[:, :-BLOCK] @ s.matrix(name)[:, :-BLOCK].T
    return other_products(inputs, product)


def bf16_sum(inputs: StageInputs) -> Tensor:
    """The running sum is rounded to bfloat16 after each block of 32 inputs."""
    def product(s: StageInputs, name: str, x: Tensor) -> Tensor:
        w = s.matrix(name)
        total = torch.zeros(len(x), len(w), dtype=torch.bfloat16, device=x.device)
        for i in range(0, w.shape[1], BLOCK):
            total = (total.to(x.dtype) + x[:, i : i + BLOCK] @ w[:, i : i + BLOCK].T).bfloat16()
        return total.to(x.dtype)
    return other_products(inputs, product)


def activations_in_8_bits(inputs: StageInputs) -> Tensor:
    """The inputs rounded to 8 bits as ggml does: no bug but a choice (--compute q8); it crushes an outlier's block."""
    def product(s: StageInputs, name: str, x: Tensor) -> Tensor:
        wide = q8_kind(QUANTS[s.weight(f"{name}.weight").quant], x.shape[1]) == "q8_k"
        rounded = q8_k(x.float()) if wide else q8_0(x.float()) if x.shape[1] % BLOCK == 0 else x
        return rounded.to(x.dtype) @ s.matrix(name).T
    return other_products(inputs, product)


def nibbles_exchanged(inputs: StageInputs) -> Tensor:
    """Low and high four bits of each Q4 byte exchanged."""
    return _rewritten(inputs, {"Q4_K": (144, 16, None), "Q4_0": (18, 2, None)}, _exchange_nibbles)


def scale_and_min_exchanged(inputs: StageInputs) -> Tensor:
    """d and dmin of each K-quant block exchanged."""
    return _rewritten(inputs, {"Q4_K": (144, 0, 4), "Q5_K": (176, 0, 4)}, lambda part: part.roll(2, 1))


def wrong_eps(inputs: StageInputs) -> Tensor:
    """The norm with eps 1e-3."""
    return normed(inputs, inputs.input(), WRONG_EPS)


def norm_plus_one(inputs: StageInputs) -> Tensor:
    """The norm by weight + 1."""
    return normed(inputs, inputs.input(), inputs.model.arch.eps, plus=1.0)


def other_activation(inputs: StageInputs, act: str) -> Tensor:
    """Another activation where the family's belongs."""
    f = inputs.of.ffn
    assert f is not None
    return activate(replace(f, act=act, numbers=()), inputs.input())


def gate_not_activated(inputs: StageInputs) -> Tensor:
    """The product of gate and up, the gate taken as it is: its activation is left out."""
    f = inputs.of.ffn
    assert f is not None
    gate = inputs.inputs[inputs.node.inputs[0].removesuffix("silu") + "gate"].to(inputs.value.dtype)
    return gated(f, gate, inputs.input(1))


def other_rope(inputs: StageInputs, pairing: bool = False, offset: int = 0, base: float = 1.0) -> Tensor:
    """RoPE with the other pairing, positions off by offset, or base times that of the layer."""
    a, is_query = inputs.attention, inputs.stage == "q_rope"
    kind, name = (a.q_norm, "attn_q_norm") if is_query else (a.k_norm, "attn_k_norm")
    x_TQ = inputs.input()[:, a.part(inputs.stage[0])]
    if a.clamp:
        x_TQ = x_TQ.clamp(-a.clamp, a.clamp)
    x_TNH: Tensor = x_TQ.unflatten(-1, (a.n_head if is_query else a.n_kv, -1))  # type: ignore[no-untyped-call]
    x_TNH = x_TNH[..., : a.width]
    if kind and not a.norm_after_rope:
        x_TNH = _head_norm(inputs, kind, name, x_TNH)
    if a.rope is not None:
        x_TNH = turned(inputs, a.rope, x_TNH, pairing, offset, base)
    if a.l2:
        x_TNH = rms_scale(x_TNH, inputs.model.arch.eps)
    if kind and a.norm_after_rope:
        x_TNH = _head_norm(inputs, kind, name, x_TNH)
    if a.temperature is not None and is_query:
        x_TNH = x_TNH * heat(a.temperature, torch.arange(len(x_TNH))).to(x_TNH)[:, None, None]
    return x_TNH.flatten(1)


def turned(inputs: StageInputs, rope: Rope, x_TNH: Tensor, pairing: bool, offset: int, base: float) -> Tensor:
    """Turn x with the other pairing, positions off by offset, or base times that of the RoPE."""
    names = {"adjacent": "halves", "halves": "adjacent"}
    rope = replace(rope, base=rope.base * base, pairing=names[rope.pairing] if pairing else rope.pairing)
    factors = None if rope.factors is None else inputs.model.vector(rope.factors)
    return rotate(x_TNH, *rope_angles(rope, offset, len(x_TNH), factors), rope.pairing)


def other_attention(
    inputs: StageInputs, causal: bool = True, scaled: bool = True, heads_apart: bool = False, windowed: bool = True,
    sinks: bool = True,
) -> Tensor:
    """Attention without a part of it, or with query head n served by key head n mod K."""
    a = inputs.attention
    q = inputs.input(0).unflatten(-1, (a.n_head, -1))  # type: ignore[no-untyped-call]
    k = inputs.input(1).unflatten(-1, (a.n_kv, -1))  # type: ignore[no-untyped-call]
    v = _values(inputs, a, k)
    if heads_apart:
        k, v = (t.repeat(1, a.n_head // a.n_kv, 1) for t in (k, v))
    a = a if scaled else replace(a, scale=1.0)
    a = a if windowed else replace(a, window=0)
    sink = inputs.vector("attn_sinks.weight") if a.sinks and sinks else None
    mix = attend_by(a, q, k, v, sink, causal)
    if a.gate == "own":
        gate = inputs.inputs[inputs.node.inputs[-1]].to(mix) @ inputs.matrix("attn_gate").T
        return mix * torch.sigmoid(gate)
    if a.gate == "query":
        both = inputs.input(2)[:, a.part("q")].unflatten(-1, (a.n_head, -1))  # type: ignore[no-untyped-call]
        return mix * torch.sigmoid(both[..., a.width :].flatten(1))
    return mix


def residual_times(inputs: StageInputs, times: int) -> Tensor:
    """The residual added that many times instead of once."""
    rest = sum(inputs.input(i) for i in range(1, len(inputs.node.inputs)))
    if inputs.layer is None:
        return inputs.input(0) * times + rest
    scale = inputs.vector("layer_output_scale.weight") if inputs.stage == "output" and inputs.of.scaled else 1.0
    return (inputs.input(0) * times + rest * inputs.of.residual) * scale


def _values(inputs: StageInputs, a: Attention, k: Tensor) -> Tensor:
    """The values [T, K, H] that attention reads; those of another layer are not among the stage's inputs."""
    if a.mla is not None:
        latent_TR = inputs.input(2)
        if not a.mla.joined:
            return torch.einsum("tr,nvr->tnv", latent_TR, inputs.vector("attn_v_b.weight"))
        raised = latent_TR @ inputs.matrix("attn_kv_b").T
        return raised.view(*k.shape[:2], -1)[..., -a.mla.v_width :]
    part = inputs.input(2)[:, a.part("v" if a.own_v else "k")]
    if a.clamp:
        part = part.clamp(-a.clamp, a.clamp)
    v: Tensor = part.unflatten(-1, (a.n_kv, -1))  # type: ignore[no-untyped-call]
    return rms_scale(v, inputs.model.arch.eps) if a.v_norm else v


def _head_norm(inputs: StageInputs, kind: str, name: str, x_TNH: Tensor) -> Tensor:
    x = x_TNH.flatten(1) if kind == "whole" else x_TNH
    weight, eps = inputs.vector(f"{name}.weight"), inputs.model.arch.eps
    return (rms_norm(x, weight, eps) if inputs.model.arch.norm == "rms" else layer_norm(x, weight, eps)
            ).reshape(x_TNH.shape)


def normed(inputs: StageInputs, x: Tensor, eps: float, plus: float = 0.0) -> Tensor:
    """The family's norm by the stage's weight and bias."""
    name = next(iter(inputs.node.weights))
    full = full_name(inputs, name)
    weight = None if full is None else inputs.model.tensor(full).to(x) + plus
    if inputs.model.arch.norm == "rms":
        assert weight is not None
        y = rms_norm(x, weight, eps)
    else:
        y = layer_norm(x, weight, eps)
    bias = inputs.bias(name)
    return y if bias is None else y + bias


def _rewritten(inputs: StageInputs, spans: Mapping[str, tuple[int, int, int | None]], change: object) -> Tensor:
    """The products with the bytes start..stop of every block of the named quant types rewritten."""
    def product(s: StageInputs, name: str, x: Tensor) -> Tensor:
        weight = s.weight(f"{name}.weight")
        if weight.quant not in spans:
            return x @ s.matrix(name).T
        size, start, stop = spans[weight.quant]
        raw = torch.tensor(weight.data).view(-1, size)
        raw[:, start:stop] = change(raw[:, start:stop])  # type: ignore[operator]
        wrong = replace(weight, data=raw.flatten().numpy())
        return x @ decode_rows(wrong, 0, weight.shape[0], x.device).to(x.dtype).T
    return other_products(inputs, product)


def _exchange_nibbles(part: Tensor) -> Tensor:
    return (part << 4) | (part >> 4)
