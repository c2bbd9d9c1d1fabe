"""Compute a stage's value as a wrong kernel would, from the stage's own inputs. Never part of the forward.

Each function takes a Scene and returns what the bug leaves in the value's place. value_faults.py gives the names.
Shape letters: T tokens, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.model.forward import Model
from core.model.ops import rms_norm, rope_angles, rotate
from core.model.stages import Stage, stage_named
from core.quant.activations import q8_0, q8_k, rounds_to_q8_k
from core.quant.dequantize import decode_rows
from core.quant.types import QUANTS
from core.quant.weight import Weight

BLOCK = 32
WRONG_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class Scene:
    """A stage's right value, and what it was made from. inputs: stage name -> value; "previous": the layer's input."""

    model: Model
    layer: int | None
    stage: str
    value: Tensor
    inputs: Mapping[str, Tensor]

    @property
    def row(self) -> Stage:
        """What the table of stages says of it."""
        return stage_named(self.stage)

    def input(self, index: int = 0) -> Tensor:
        """The stage's input of that index in its row, in the value's float type."""
        return self.inputs[self.row.inputs[index]].to(self.value.dtype)

    def weight(self, name: str) -> Weight:
        """A tensor of this layer, or of the whole model."""
        return self.model.file.weight(name if self.layer is None else f"blk.{self.layer}.{name}")

    def bias(self, name: str) -> Tensor | None:
        """A bias of this layer, in the value's float type."""
        found = self.model.vector(f"blk.{self.layer}.{name}.bias")
        return None if found is None else found.to(self.value)

    def matrix(self, name: str) -> Tensor:
        """A decoded weight [rows, cols], in the value's float type."""
        weight = self.weight(f"{name}.weight")
        return decode_rows(weight, 0, weight.shape[0], self.value.device).to(self.value.dtype)


def other_products(scene: Scene, product: object) -> Tensor:
    """The stage's linear map with product(matrix name, matrix, input) in place of every multiplication."""
    x, parts = scene.input(), []
    for name in scene.row.weights:
        y = product(scene, name, x)  # type: ignore[operator]
        bias = scene.bias(name)
        parts.append(y if bias is None else y + bias)
    return torch.cat(parts, -1)


def right(scene: Scene) -> Tensor:
    """The stage as the wrong operations compute it, with nothing wrong: what a bug that changes nothing leaves."""
    match scene.row.operation:
        case "linear":
            return other_products(scene, lambda s, name, x: x @ s.matrix(name).T)
        case "norm":
            return rms_norm(scene.input(), _norm(scene), scene.model.arch.eps)
        case "rope":
            return other_rope(scene)
        case "attention":
            return other_attention(scene)
    return scene.value


def no_bias(scene: Scene) -> Tensor:
    """The products without their biases."""
    x = scene.input()
    return torch.cat([x @ scene.matrix(name).T for name in scene.row.weights], -1)


def transposed(scene: Scene) -> Tensor:
    """Each matrix read as if it stood in memory by columns: [rows, cols] bytes taken as [cols, rows]."""
    def product(s: Scene, name: str, x: Tensor) -> Tensor:
        w = s.matrix(name)
        return x @ w.reshape(w.shape[1], w.shape[0])
    return other_products(scene, product)


def last_block_dropped(scene: Scene) -> Tensor:
    """The sum stops one block of 32 inputs too early."""
    def product(s: Scene, name: str, x: Tensor) -> Tensor:
        return x[:, :-BLOCK] @ s.matrix(name)[:, :-BLOCK].T
    return other_products(scene, product)


def bf16_sum(scene: Scene) -> Tensor:
    """The running sum is rounded to bfloat16 after each block of 32 inputs."""
    def product(s: Scene, name: str, x: Tensor) -> Tensor:
        w = s.matrix(name)
        total = torch.zeros(len(x), len(w), dtype=torch.bfloat16, device=x.device)
        for i in range(0, w.shape[1], BLOCK):
            total = (total.to(x.dtype) + x[:, i : i + BLOCK] @ w[:, i : i + BLOCK].T).bfloat16()
        return total.to(x.dtype)
    return other_products(scene, product)


def activations_in_8_bits(scene: Scene) -> Tensor:
    """The inputs rounded to 8 bits as ggml does: no bug but a choice (--compute q8); it crushes an outlier's block."""
    def product(s: Scene, name: str, x: Tensor) -> Tensor:
        wide = rounds_to_q8_k(QUANTS[s.weight(f"{name}.weight").quant], x.shape[1])
        rounded = q8_k(x.float()) if wide else q8_0(x.float()) if x.shape[1] % BLOCK == 0 else x
        return rounded.to(x.dtype) @ s.matrix(name).T
    return other_products(scene, product)


def nibbles_exchanged(scene: Scene) -> Tensor:
    """Low and high four bits of each Q4 byte exchanged."""
    return _rewritten(scene, {"Q4_K": (144, 16, None), "Q4_0": (18, 2, None)}, _exchange_nibbles)


def scale_and_min_exchanged(scene: Scene) -> Tensor:
    """d and dmin of each K-quant block exchanged."""
    return _rewritten(scene, {"Q4_K": (144, 0, 4), "Q5_K": (176, 0, 4)}, lambda part: part.roll(2, 1))


def wrong_eps(scene: Scene) -> Tensor:
    """RMS norm with eps 1e-3."""
    return rms_norm(scene.input(), _norm(scene), WRONG_EPS)


def norm_plus_one(scene: Scene) -> Tensor:
    """RMS norm by weight + 1."""
    return rms_norm(scene.input(), _norm(scene) + 1, scene.model.arch.eps)


def gelu(scene: Scene) -> Tensor:
    """GELU where SiLU belongs."""
    return torch.nn.functional.gelu(scene.input())


def other_rope(scene: Scene, pairing: bool = False, offset: int = 0, base: float = 1.0) -> Tensor:
    """RoPE with the other pairing, positions off by offset, or base times that of the model."""
    arch = scene.model.arch
    names = {"adjacent": "halves", "halves": "adjacent"}
    rope = replace(arch.rope, base=arch.rope.base * base)
    rope = replace(rope, pairing=names[rope.pairing]) if pairing else rope
    part = arch.qkv_part(scene.stage[0])
    x_TNH = scene.input()[:, part].unflatten(-1, (-1, arch.head_dim))  # type: ignore[no-untyped-call]
    if arch.qk_norm:
        x_TNH = rms_norm(x_TNH, _norm(scene), arch.eps)
    angles = rope_angles(rope, offset, len(x_TNH), scene.model.vector("rope_freqs.weight"))
    return rotate(x_TNH, *angles, rope.pairing).flatten(1)


def other_attention(scene: Scene, causal: bool = True, scaled: bool = True, heads_apart: bool = False) -> Tensor:
    """Attention without its mask, without the scale of its scores, or with query head n served by key head n mod K."""
    arch = scene.model.arch
    n_kv, width = arch.n_kv_head, arch.head_dim
    q = scene.input(0).view(-1, arch.n_head, width).transpose(0, 1)
    k = scene.input(1).view(-1, n_kv, width).transpose(0, 1)
    v = scene.input(2)[:, arch.qkv_part("v")].reshape(-1, n_kv, width).transpose(0, 1)
    group = arch.n_head // n_kv
    k, v = (t.repeat(group, 1, 1) if heads_apart else t.repeat_interleave(group, 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * (1 / math.sqrt(width) if scaled else 1.0)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def residual_times(scene: Scene, times: int) -> Tensor:
    """The residual added that many times instead of once."""
    return scene.input(0) * times + scene.input(1)


def _norm(scene: Scene) -> Tensor:
    weight = scene.weight(f"{scene.row.weights[0]}.weight")
    return decode_rows(weight, 0, weight.shape[0], scene.value.device).to(scene.value.dtype)


def _rewritten(scene: Scene, spans: Mapping[str, tuple[int, int, int | None]], change: object) -> Tensor:
    """The products with the bytes start..stop of every block of the named quant types rewritten."""
    def product(s: Scene, name: str, x: Tensor) -> Tensor:
        weight = s.weight(f"{name}.weight")
        if weight.quant not in spans:
            return x @ s.matrix(name).T
        size, start, stop = spans[weight.quant]
        raw = torch.tensor(weight.data).view(-1, size)
        raw[:, start:stop] = change(raw[:, start:stop])  # type: ignore[operator]
        wrong = replace(weight, data=raw.flatten().numpy())
        return x @ decode_rows(wrong, 0, weight.shape[0], x.device).to(x.dtype).T
    return other_products(scene, product)


def _exchange_nibbles(part: Tensor) -> Tensor:
    return (part << 4) | (part >> 4)
