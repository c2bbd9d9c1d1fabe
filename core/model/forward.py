"""The one forward of a decoder-only transformer, with the tap always in it. It holds no weights and drives nothing.

It is a generator: it yields each product it needs (Product) and is sent the result, so that several runs of it (traced,
untraced, perturbed, float64) walk side by side and every weight is decoded once for all of them (lockstep.py).
Shape letters: T tokens, D model, Q joined q k v, N query heads, K key-value heads, H head width, F feed-forward,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.formats.model_file import ModelFile
from core.kernels.gpu.planes import LAYOUTS
from core.model.arch import Arch
from core.model.gpu_weights import Resident
from core.model.ops import PLAIN, Ops, rope_angles, silu
from core.quant.dequantize import decode_rows, embedding_rows
from core.quant.weight import Weight

Tap = Callable[[int | None, str, Tensor], Tensor]  # layer, stage, value -> the value the forward goes on with


@dataclass(frozen=True, slots=True)
class Product:
    """A request: x [T, cols] times the weight's transpose; resident: where the weight may be on the device already."""

    weight: Weight
    x: Tensor
    resident: Resident | None = None


Steps = Generator[Product, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Model:
    """An opened file ready to run: its sizes, its device, the float type of its activations, its weights on a GPU."""

    file: ModelFile
    arch: Arch
    device: torch.device
    dtype: torch.dtype = torch.float32
    resident: Resident | None = None

    @property
    def ops(self) -> Ops:
        """The device's own operations for float32, else the plain ones."""
        return self.resident.ops if self.resident is not None and self.dtype == torch.float32 else PLAIN

    def product(self, name: str, x: Tensor) -> Product:
        """Ask for x times the named weight's transpose."""
        return Product(self.file.weight(name), x, self.resident)

    def vector(self, name: str) -> Tensor | None:
        """Return a norm weight, bias or factor vector; None where the file has none."""
        def decode() -> Tensor | None:
            weight = self.file.weights.get(name)
            return None if weight is None else decode_rows(weight, 0, weight.shape[0], self.device)

        found = decode() if self.resident is None else self.resident.vector(name, decode)
        return None if found is None else found.to(self.dtype)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """RMS norm by the named weight."""
        weight = self.vector(name)
        assert weight is not None, name
        return self.ops.rms_norm(x, weight, self.arch.eps)

    def embed(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Return the embedding rows [T, D] of the tokens, on the device."""
        weight = self.file.weight("token_embd.weight")
        if self.resident is not None and weight.quant in LAYOUTS:
            ids = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, device=self.device)
            return self.resident.embed(weight, ids).to(self.dtype)
        listed = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return embedding_rows(weight, listed).to(self.device, self.dtype)

    @property
    def head(self) -> str:
        """The output head's name: its own tensor, or the tied embedding."""
        return "token_embd.weight" if self.arch.tied else "output.weight"


@dataclass(slots=True)
class Cache:
    """Keys and values of every position so far, a layer's under its index."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    position: Tensor | None = None  # of the next token, where keys and values have room for more than they hold

    @property
    def n_past(self) -> int:
        """Positions already held."""
        return self.keys[0].shape[0] if self.keys else 0

    def angles(self, model: Model, n_token: int) -> tuple[Tensor, Tensor]:
        """Return RoPE's cos and sin for the next positions, in the model's float type, on its device."""
        cos, sin = rope_angles(model.arch.rope, self.n_past, n_token, model.vector("rope_freqs.weight"))
        return cos.to(model.device, model.dtype), sin.to(model.device, model.dtype)

    def extend(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values of the layer."""
        if layer in self.keys:
            k_TKH, v_TKH = torch.cat((self.keys[layer], k_TKH)), torch.cat((self.values[layer], v_TKH))
        v_TKH = v_TKH.contiguous()  # a part of qkv would keep all of it
        self.keys[layer], self.values[layer] = k_TKH, v_TKH
        return k_TKH, v_TKH


def forward(model: Model, tokens: Sequence[int] | Tensor, tap: Tap, cache: Cache | None = None) -> Steps:
    """Run the tokens through the whole model; returns the logits [1, V] of the last one."""
    arch = model.arch
    cache = Cache() if cache is None else cache
    angles = cache.angles(model, len(tokens))
    x_TD = tap(None, "embedding", model.embed(tokens))
    for layer in range(arch.n_layer):
        x_TD = yield from block(model, layer, x_TD, angles, tap, cache)
    x_TD = tap(None, "final_norm", model.norm("output_norm.weight", x_TD))
    return tap(None, "logits", (yield model.product(model.head, x_TD[-1:])))


def block(model: Model, layer: int, x_TD: Tensor, angles: tuple[Tensor, Tensor], tap: Tap, cache: Cache) -> Steps:
    """Run one layer on the residual stream x; returns the residual stream after it."""
    name = f"blk.{layer}."
    h_TD = tap(layer, "attn_norm", model.norm(name + "attn_norm.weight", x_TD))
    out_TD = yield from attention(model, layer, h_TD, angles, tap, cache)
    x_TD = tap(layer, "attn_resid", x_TD + out_TD)
    h_TD = tap(layer, "ffn_norm", model.norm(name + "ffn_norm.weight", x_TD))
    gate_TF = tap(layer, "ffn_gate", (yield model.product(name + "ffn_gate.weight", h_TD)))
    up_TF = tap(layer, "ffn_up", (yield model.product(name + "ffn_up.weight", h_TD)))
    silu_TF = tap(layer, "ffn_silu", silu(gate_TF))
    h_TF = tap(layer, "ffn_swigl", silu_TF * up_TF)
    out_TD = tap(layer, "ffn_out", (yield model.product(name + "ffn_down.weight", h_TF)))
    return tap(layer, "output", x_TD + out_TD)


def attention(model: Model, layer: int, h_TD: Tensor, angles: tuple[Tensor, Tensor], tap: Tap, cache: Cache) -> Steps:
    """Grouped-query attention of one layer on its normed input; returns the projected mix, before the residual add."""
    arch, name = model.arch, f"blk.{layer}."
    n_q, n_kv = arch.n_head * arch.head_dim, arch.n_kv_head * arch.head_dim
    parts = []
    for part in ("attn_q", "attn_k", "attn_v"):
        parts.append((yield from linear(model, name + part, h_TD)))
    qkv_TQ = tap(layer, "qkv", torch.cat(parts, -1))
    q_TNH, k_TKH, v_TKH = (
        part.reshape(len(h_TD), -1, arch.head_dim)
        for part in (qkv_TQ[:, :n_q], qkv_TQ[:, n_q : n_q + n_kv], qkv_TQ[:, n_q + n_kv :])
    )
    if arch.qk_norm:
        q_TNH, k_TKH = model.norm(name + "attn_q_norm.weight", q_TNH), model.norm(name + "attn_k_norm.weight", k_TKH)
    q_TNH, k_TKH = (model.ops.rotate(t, *angles, arch.rope.pairing) for t in (q_TNH, k_TKH))
    q_TNH = tap(layer, "q_rope", q_TNH.flatten(1)).reshape(q_TNH.shape)
    k_TKH = tap(layer, "k_rope", k_TKH.flatten(1)).reshape(k_TKH.shape)
    mix_TQ = tap(layer, "attn_mix", model.ops.attend(q_TNH, *cache.extend(layer, k_TKH, v_TKH), cache.position))
    return tap(layer, "attn_out", (yield from linear(model, name + "attn_output", mix_TQ)))


def linear(model: Model, name: str, x: Tensor) -> Steps:
    """Multiply by name.weight and add name.bias where the file has one."""
    y = yield model.product(name + ".weight", x)
    bias = model.vector(name + ".bias")
    return y if bias is None else y + bias
