"""Round keys, values and the queries that meet them as a quantised KV cache does. It keeps nothing.

ggml's types of blocks: x ~ d q (+ m), d and m in float16. A quantised head whose width is a multiple of 64 is turned
first, as llama.cpp does: by the Hadamard matrix of the largest power of two that divides its width for queries and
keys, of 64 for values; it is orthonormal and its own inverse, so that what stands here is turned back.
Source: ggml-quants.c (quantize_row_*_ref), llama-kv-cache.cpp (attn_rot_k, attn_rot_v), as of llama-cpp-python 0.3.36.
Shape letters: T tokens, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from core.quant.activations import SMALL_BLOCK, q8_0
from core.system.errors import UsageError

TURNED = 64  # widths that are multiples of this are turned
Round = Callable[[Tensor], Tensor]


def _half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def _signed(levels: int) -> Round:
    """Types without a minimum: d = the value of largest size / -levels, q from -levels to levels - 1."""
    def round_blocks(x: Tensor) -> Tensor:
        blocks = x.reshape(-1, SMALL_BLOCK)
        d = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -levels
        inverse = torch.where(d == 0, 0.0, 1 / d)
        q = (blocks * inverse + (levels + 0.5)).trunc().clamp(max=2 * levels - 1)
        return ((q - levels) * _half(d)).reshape(x.shape)
    return round_blocks


def _with_minimum(most: int) -> Round:
    """Types with a minimum m: d = (largest - m) / most, q from 0 to most."""
    def round_blocks(x: Tensor) -> Tensor:
        blocks = x.reshape(-1, SMALL_BLOCK)
        low = blocks.amin(1, keepdim=True)
        d = (blocks.amax(1, keepdim=True) - low) / most
        inverse = torch.where(d == 0, 0.0, 1 / d)
        q = ((blocks - low) * inverse + 0.5).trunc().clamp(max=most)
        return (q * _half(d) + _half(low)).reshape(x.shape)
    return round_blocks


@dataclass(frozen=True, slots=True)
class CacheType:
    """rounds: what the type makes of a value. query: what ggml makes of the query that meets such a key."""

    rounds: Round
    query: Round
    blocks: bool = True


CACHE_TYPES = {
    "f32": CacheType(lambda x: x, lambda x: x, blocks=False), "f16": CacheType(_half, _half, blocks=False),
    "q8_0": CacheType(q8_0, q8_0), "q5_1": CacheType(_with_minimum(31), q8_0),
    "q5_0": CacheType(_signed(16), q8_0), "q4_1": CacheType(_with_minimum(15), q8_0),
    "q4_0": CacheType(_signed(8), q8_0),
}


@dataclass(frozen=True, slots=True)
class KvTypes:
    """The types that keys and values are kept in."""

    k: str = "f32"
    v: str = "f32"

    @property
    def text(self) -> str:
        """As read_kv_types reads it."""
        return self.k if self.k == self.v else f"{self.k}/{self.v}"

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded."""
        return self.k == self.v == "f32"

    @property
    def blocks(self) -> bool:
        """Whether a type has blocks, which a head's width must be whole ones of."""
        return CACHE_TYPES[self.k].blocks or CACHE_TYPES[self.v].blocks

    def query(self, q_TNH: Tensor) -> Tensor:
        """A query as it meets a key."""
        return self._turned(self.k, q_TNH, CACHE_TYPES[self.k].query, _largest(q_TNH.shape[-1]))

    def key(self, k_TKH: Tensor) -> Tensor:
        """A key as it is kept."""
        return self._turned(self.k, k_TKH, CACHE_TYPES[self.k].rounds, _largest(k_TKH.shape[-1]))

    def value(self, v_TKH: Tensor) -> Tensor:
        """A value as it is kept."""
        return self._turned(self.v, v_TKH, CACHE_TYPES[self.v].rounds, TURNED)

    def _turned(self, kind: str, x: Tensor, rounds: Round, size: int) -> Tensor:
        if not CACHE_TYPES[kind].blocks or x.shape[-1] % TURNED:
            return rounds(x)
        turn = _hadamard(size).to(x)
        parts = x.reshape(*x.shape[:-1], -1, size)
        turned: Tensor = rounds((parts @ turn).reshape(x.shape)).view(parts.shape) @ turn
        return turned.reshape(x.shape)


EXACT = KvTypes()


def read_kv_types(text: str) -> KvTypes:
    """Read TYPE, or K/V for keys and values apart; UsageError."""
    parts = text.split("/")
    if len(parts) > 2 or not all(part in CACHE_TYPES for part in parts):
        raise UsageError(f"cache={text}: one of {', '.join(CACHE_TYPES)} is needed, or two as K/V (cache=q8_0/q4_0).")
    return KvTypes(parts[0], parts[-1])


def _largest(width: int) -> int:
    """The largest power of two that divides the width."""
    return width & -width


@cache
def _hadamard(size: int) -> Tensor:
    """The orthonormal Hadamard matrix [size, size]: Sylvester's, over the root of its size."""
    h: Tensor = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return torch.mul(h, size**-0.5)
