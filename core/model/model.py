"""What a forward runs on: an opened model, the products it asks for, the tap, and the cache. It computes no layer.

Shape letters: T tokens, S positions so far, D model, K key-value heads, H head width, N rows of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.formats.model_file import ModelFile
from core.kernels.gpu.planes import LAYOUTS
from core.model.arch import Arch
from core.model.gpu_weights import Resident
from core.model.layers import Rope
from core.model.ops import PLAIN, Ops, layer_norm, rope_angles
from core.quant.cache_types import EXACT, KvTypes
from core.quant.dequantize import decode_weight, embedding_rows
from core.quant.weight import Weight

KEPT_VALUES = 1 << 16  # of a small tensor that stays decoded: a norm, a bias, not the matrices of a latent attention
Tap = Callable[[int | None, str, Tensor], Tensor]  # layer, stage, value -> the value the forward goes on with


@dataclass(frozen=True, slots=True)
class Product:
    """A request: x [T, cols] times the weight's transpose; resident: where the weight may be on the device already.

    experts: of a weight [E, rows, cols], which of them each row of x [N, cols] meets; runs in lockstep ask
    for one weight at once, whatever experts they chose. more: weights whose products with x stand beside the first's.
    """

    weight: Weight
    x: Tensor
    resident: Resident | None = None
    experts: Tensor | None = None
    more: tuple[Weight, ...] = ()


Steps = Generator[Product, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a forward goes on: before that layer, with the residual x [T, D] that an earlier run had there."""

    layer: int
    x: Tensor


@dataclass(frozen=True, slots=True)
class Model:
    """An opened file ready to run: its sizes, its device, the float type of its activations, its weights on a GPU.

    kv: how it keeps keys and values.
    """

    file: ModelFile
    arch: Arch
    device: torch.device
    dtype: torch.dtype = torch.float32
    resident: Resident | None = None
    kv: KvTypes = EXACT
    decoded: dict[str, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def ops(self) -> Ops:
        """The device's own operations for float32, else the plain ones."""
        return self.resident.ops if self.resident is not None and self.dtype == torch.float32 else PLAIN

    def product(self, name: str, x: Tensor, experts: Tensor | None = None) -> Product:
        """Ask for x times the named weight's transpose."""
        return Product(self.file.weight(name), x, self.resident, experts)

    def vector(self, name: str) -> Tensor | None:
        """Return a small tensor in its own shape (a norm, a bias, factors), decoded; None where the file has none.

        It is decoded once, and nobody may change it in place.
        """
        if name in self.decoded:
            return self.decoded[name]
        weight = self.file.weights.get(name)
        with torch.inference_mode(False):  # a gradient may pass what a run without one has decoded
            found = None if weight is None else decode_weight(weight, self.device).to(self.dtype)
        if found is None or self.resident is not None or found.numel() <= KEPT_VALUES:
            self.decoded[name] = found
        return found

    def tensor(self, name: str) -> Tensor:
        """Return a small tensor that the file must have, in its own shape; FileError."""
        found = self.vector(self.file.weight(name).name)
        assert found is not None
        return found

    def norm(self, name: str, x: Tensor) -> Tensor:
        """The family's norm by the weight of that full name (blk.3.attn_norm.weight), with its bias if it has one."""
        weight = self.vector(name)
        if self.arch.norm == "rms":
            assert weight is not None, name
            y = self.ops.rms_norm(x, weight, self.arch.eps)
        else:
            y = layer_norm(x, weight, self.arch.eps)
        bias = self.vector(name.removesuffix(".weight") + ".bias")
        return y if bias is None else y + bias

    def rows(self, name: str, tokens: Sequence[int] | Tensor) -> Tensor:
        """Return the rows of the named matrix that belong to these tokens [T, cols], on the device."""
        weight = self.file.weight(name)
        if self.resident is not None and weight.quant in LAYOUTS:
            ids = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, device=self.device)
            return self.resident.embed(weight, ids).to(self.dtype)
        listed = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return embedding_rows(weight, listed).to(self.device, self.dtype)

    @property
    def head(self) -> str:
        """The output head's name: its own tensor, or the tied embedding."""
        return "token_embd" if self.arch.tied else "output"


@dataclass(slots=True)
class Cache:
    """What a forward keeps of every position so far, a layer's under its index.

    states: what a recurrent mixer of the layer left after the last token, in a form of its own.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    rooms: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # where they lie, with room for more
    n_past: int = 0  # positions already held, before the tokens of the running step
    position: Tensor | None = None  # of the next token, where keys and values have room for more than they hold
    turned: dict[Rope, tuple[Tensor, Tensor]] = field(default_factory=dict)  # angles of the running step

    def begin(self, n_token: int) -> None:
        """Start a step of so many tokens."""
        self.turned = {}

    def end(self, n_token: int) -> None:
        """Count the tokens of a step that has run."""
        self.n_past += n_token

    def angles(self, model: Model, rope: Rope, n_token: int) -> tuple[Tensor, Tensor]:
        """Return RoPE's cos and sin for the next positions, as the model's rotate takes them."""
        if rope not in self.turned:
            factors = None if rope.factors is None else model.vector(rope.factors)
            cos, sin = rope_angles(rope, self.n_past, n_token, factors)
            cos, sin = cos.to(model.device, model.dtype), sin.to(model.device, model.dtype)
            self.turned[rope] = model.ops.angles(cos, sin, rope.pairing)
        return self.turned[rope]

    def positions(self, n_token: int, like: Tensor) -> Tensor:
        """The positions [T] of the tokens of the running step, on the device of another tensor."""
        return torch.arange(self.n_past, self.n_past + n_token, device=like.device)

    def extend(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values of the layer."""
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = k_TKH, v_TKH.contiguous()  # a part of qkv would keep all of it
        else:
            self.keys[layer] = self._append(("k", layer), self.keys[layer], k_TKH)
            self.values[layer] = self._append(("v", layer), self.values[layer], v_TKH)
        return self.keys[layer], self.values[layer]

    def _append(self, name: tuple[str, int], held: Tensor, new: Tensor) -> Tensor:
        """What is held with what is new behind it, in a room that doubles where it is too small."""
        n_held, n = held.shape[0], held.shape[0] + new.shape[0]  # len() of a tensor takes as long as a small product
        room = self.rooms.get(name)
        if room is None or room.shape[0] < n:
            room = self.rooms[name] = new.new_empty(2 * n, *new.shape[1:])
            room[:n_held] = held
        room[n_held:n] = new
        return room[:n]


def linear(model: Model, name: str, x: Tensor, experts: Tensor | None = None) -> Steps:
    """Multiply by name.weight and add name.bias where the file has one; of experts, each row by its own."""
    y = yield model.product(name + ".weight", x, experts)
    bias = model.vector(name + ".bias")
    if bias is None:
        return y
    return y + (bias if experts is None else bias[experts])


def linears(model: Model, names: Sequence[str], x: Tensor) -> Steps:
    """Do what linear does by each name, and return the products side by side [T, all rows]: on the CPU one request.

    Each has a request of its own on a GPU, and where a gradient passes: who takes it reads one weight at a time.
    """
    if model.resident is not None or torch.is_grad_enabled() or len(names) == 1:
        parts = []
        for name in names:
            parts.append((yield from linear(model, name, x)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    first, *more = (model.file.weight(name + ".weight") for name in names)
    y = yield Product(first, x, more=tuple(more))
    biases = [model.vector(name + ".bias") for name in names]
    if not any(bias is not None for bias in biases):
        return y
    each = zip(y.split_with_sizes([weight.shape[0] for weight in (first, *more)], -1), biases, strict=True)
    return torch.cat([part if bias is None else part + bias for part, bias in each], -1)
