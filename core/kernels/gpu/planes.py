"""Split stored weights into planes that a GPU reads in whole words: the same bits, field by field; nothing is decoded.

A group is 256 columns of a row. Its quants stand in chunks of 16 or 32 bytes; a byte's nibble is its slot.
Shapes: R rows, G groups of a row, N blocks of a group, B bytes of a block. The kernels: products.py.
Source of the blocks: quant/dequantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.quant.types import QUANTS, row_bytes
from core.quant.weight import Weight

GROUP = 256


@dataclass(frozen=True, slots=True)
class Planes:
    """A weight on its device. high, scales and supers are quants again where the type has none."""

    quant: str
    rows: int
    cols: int
    n_group: int
    quants: Tensor  # [R, G, bytes] uint8; Q8_0 int8; a type without scales: its values [R, G, 256]
    high: Tensor    # the bits beyond a nibble, uint8: [R, G, 32] of Q5_K, [R, G, 64] of Q6_K
    scales: Tensor  # [R, G, 16] uint8 (Q4_K, Q5_K: eight scales, then eight mins) or int8 (Q6_K); float16 [R, G, 8]
    supers: Tensor  # float16: d and dmin [R, G, 2], or d [R, G, 1]

    @property
    def n_bytes(self) -> int:
        """Bytes of device memory."""
        parts = {t.data_ptr(): t for t in (self.quants, self.high, self.scales, self.supers)}
        return sum(t.nbytes for t in parts.values())


def to_planes(weight: Weight, device: torch.device) -> Planes:
    """Bring a matrix of a type in LAYOUTS to the device; rows are padded with zero blocks to whole groups."""
    (rows, cols), quant = weight.shape, QUANTS[weight.quant]
    raw = torch.empty(rows * row_bytes(quant, cols), dtype=torch.uint8)  # a copy: the map is read-only
    raw.numpy()[:] = weight.data[:len(raw)]
    blocks = raw.to(device).view(rows, -1, quant.block_bytes)
    per_group = GROUP // quant.block
    missing = -blocks.shape[1] % per_group
    if missing:
        blocks = torch.nn.functional.pad(blocks, (0, 0, 0, missing))
    blocks = blocks.view(rows, -1, per_group, quant.block_bytes)
    parts = [part.contiguous() for part in LAYOUTS[weight.quant](blocks)]
    return Planes(weight.quant, rows, cols, blocks.shape[1], *parts, *[parts[0]] * (4 - len(parts)))


def _halves(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16)


def _six_bits(packed: Tensor) -> Tensor:
    """Eight scales, then eight mins, a byte each [R, G, 16], of the twelve bytes they are packed in."""
    low, high, rest = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    late = (rest & 15) | (low >> 6 << 4), (rest >> 4) | (high >> 6 << 4)
    return torch.cat((low & 63, late[0], high & 63, late[1]), -1)


def _q4_k(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    quants = raw[..., 16:].contiguous()
    return quants, quants, _six_bits(raw[..., 4:16]), _halves(raw[..., :4])


def _q5_k(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    return raw[..., 48:], raw[..., 16:48], _six_bits(raw[..., 4:16]), _halves(raw[..., :4])


def _q6_k(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    return raw[..., :128], raw[..., 128:192], raw[..., 192:208].view(torch.int8), _halves(raw[..., 208:])


def _q4_0(raw: Tensor) -> tuple[Tensor, ...]:
    quants = raw[..., 2:].flatten(2).contiguous()
    return quants, quants, _halves(raw[..., :2]).squeeze(-1)


def _q8_0(raw: Tensor) -> tuple[Tensor, ...]:
    quants = raw[..., 2:].flatten(2).contiguous().view(torch.int8)
    return quants, quants, _halves(raw[..., :2]).squeeze(-1)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return lambda raw: (raw.contiguous().view(dtype).squeeze(-1),)


LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {  # blocks [R, G, N, B] -> quants, high, scales, supers
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "F32": _plain(torch.float32),
}
