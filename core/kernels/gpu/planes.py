"""Split stored weights into planes that a GPU reads in whole words: the same bits, field by field; nothing is decoded.
A type with a table has its levels in place of their indices, whole numbers all the same.

A group is 256 columns of a row. Its quants stand in chunks of 16 bytes; a byte has a slot for each number it holds.
Shapes: R rows, G groups of a row, N blocks of a group, B bytes of a block. A new type: how it is split, and its row of
LAYOUTS, which the kernels read (blocks.py, products.py). Source of the blocks: quant/dequantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.quant.grids import level_values
from core.quant.types import QUANTS, row_bytes
from core.quant.weight import Weight

GROUP = 256


@dataclass(frozen=True, slots=True)
class Numbers:
    """How whole numbers and their scales stand in planes. A value is scale * (number - offset), or less a minimum.

    slots: numbers in a byte of quants, the lowest bits first. run: bytes whose first slots are columns side by side;
    then come those of the next slots. signed: a byte is an int8, and nothing is subtracted.
    high: a number's bits beyond its slot, in the plane of that name: 32 bytes hold 8 / high sub-blocks of 32 columns.
    span: columns under one scale. supers: scales count in d, a float16 of the group; without, they are float16 by
    themselves. mins: as many minima follow the scales, which count in dmin.
    """

    slots: int
    run: int
    span: int
    high: int = 0
    signed: bool = False
    supers: bool = False
    mins: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A type's row: blocks [R, G, N, B] -> quants, high, scales, supers; how its numbers stand there.

    values: of a type without numbers and scales, how many bfloat16 together hold one of its values.
    """

    split: Callable[[Tensor], tuple[Tensor, ...]]
    numbers: Numbers | None = None
    values: int = 0


@dataclass(frozen=True, slots=True)
class Planes:
    """A weight on its device. high, scales and supers are quants again where the type has none."""

    quant: str
    rows: int
    cols: int
    n_group: int
    quants: Tensor  # [R, G, bytes] uint8; Q8_0 int8; a type without scales: its values [R, G, 256]
    high: Tensor    # the bits beyond a slot, uint8 [R, G, 32 * bits]
    scales: Tensor  # [R, G, 256 / span], then as many minima where there are some: uint8, int8, float16 or float32
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
    parts = [part.contiguous() for part in LAYOUTS[weight.quant].split(blocks)]
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


def _with_minima(raw: Tensor) -> Tensor:
    """The scales of the blocks, then their minima with the sign turned, as a value is less its minimum [R, G, 16]."""
    return torch.cat((_halves(raw[..., :2]), -_halves(raw[..., 2:4])), 2).flatten(2)


def _q4_1(raw: Tensor) -> tuple[Tensor, ...]:
    quants = raw[..., 4:].flatten(2).contiguous()
    return quants, quants, _with_minima(raw)


def _nibbles(raw: Tensor) -> Tensor:
    """Numbers [R, G, N, 2 B], in columns' order: the low nibbles of a block's bytes, then the high ones."""
    return torch.cat((raw & 15, raw >> 4), -1)


def _five_bits(low: Tensor, fifth: Tensor) -> tuple[Tensor, Tensor]:
    """Quants [R, G, 128] and high [R, G, 32] as Q5_K has them: of nibbles [R, G, 8, 16] and bits [R, G, 8, 4]."""
    number = _nibbles(low)
    quants = (number[:, :, 0::2] | number[:, :, 1::2] << 4).flatten(2)
    bit = torch.arange(8, dtype=torch.uint8, device=low.device)
    bits = ((fifth[..., None] >> bit) & 1).flatten(3)  # of the 32 columns of each block
    return quants, (bits << bit[:, None]).sum(2).to(torch.uint8)


def _q5_0(raw: Tensor) -> tuple[Tensor, ...]:
    return *_five_bits(raw[..., 6:], raw[..., 2:6]), _halves(raw[..., :2]).squeeze(-1)


def _q5_1(raw: Tensor) -> tuple[Tensor, ...]:
    return *_five_bits(raw[..., 8:], raw[..., 4:8]), _with_minima(raw)


def _q2_k(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    quants, both = raw[..., 16:80].contiguous(), raw[..., :16]
    return quants, quants, torch.cat((both & 15, both >> 4), -1), _halves(raw[..., 80:])


def _q3_k(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    low, late = _nibbles(raw[..., 96:104]), torch.cat([(raw[..., 104:108] >> at & 3) << 4 for at in (0, 2, 4, 6)], -1)
    return raw[..., 32:96], raw[..., :32], (low | late).view(torch.int8) - 32, _halves(raw[..., 108:])


def _levels(raw: Tensor, name: str) -> Tensor:
    """The levels of a table [R, G, 256] int8, in columns' order, of the indices in nibbles [R, G, N, B]."""
    return torch.from_numpy(level_values(name)).to(raw.device)[_nibbles(raw).flatten(2).long()]


def _iq4_nl(raw: Tensor) -> tuple[Tensor, ...]:
    quants = _levels(raw[..., 2:], "IQ4_NL")
    return quants, quants, _halves(raw[..., :2]).squeeze(-1)


def _iq4_xs(raw: Tensor) -> tuple[Tensor, ...]:
    raw = raw[:, :, 0]
    quants = _levels(raw[..., 8:].unflatten(-1, (8, 16)), "IQ4_NL")  # type: ignore[no-untyped-call]
    low = torch.stack((raw[..., 4:8] & 15, raw[..., 4:8] >> 4), -1).flatten(-2)
    late = torch.cat([raw[..., 2:4, None] >> at & 3 for at in (0, 2, 4, 6)], -1).flatten(-2) << 4
    return quants, quants, (low | late).view(torch.int8) - 32, _halves(raw[..., :2])


def _mxfp4(raw: Tensor) -> tuple[Tensor, ...]:
    quants, e = _levels(raw[..., 1:], "MXFP4"), raw[..., 0].int()
    bits = torch.where(e < 2, 0x00200000 << e, (e - 1) << 23)  # half of 2^(e - 127): the levels are doubled
    return quants, quants, bits.view(torch.float32)


def _nvfp4(raw: Tensor) -> tuple[Tensor, ...]:
    quants, e = _levels(raw[..., 4:].unflatten(-1, (4, 8)).flatten(2, 3), "NVFP4"), raw[..., :4].flatten(2)  # type: ignore[no-untyped-call]
    exponent, man = (e >> 3 & 15).float(), (e & 7).float()
    scales = torch.where(exponent == 0, man * 2**-9, (1 + man / 8) * torch.exp2(exponent - 7)) / 2
    return quants, quants, torch.where((e == 0) | (e == 0x7F), 0.0, scales)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return lambda raw: (raw.contiguous().view(dtype).squeeze(-1),)


LAYOUTS = {
    "Q4_K": Layout(_q4_k, Numbers(slots=2, run=32, span=32, supers=True, mins=True)),
    "Q5_K": Layout(_q5_k, Numbers(slots=2, run=32, span=32, high=1, supers=True, mins=True)),
    "Q6_K": Layout(_q6_k, Numbers(slots=2, run=64, span=16, high=2, supers=True, offset=32)),
    "Q4_0": Layout(_q4_0, Numbers(slots=2, run=16, span=32, offset=8)),
    "Q8_0": Layout(_q8_0, Numbers(slots=1, run=32, span=32, signed=True)),
    "Q4_1": Layout(_q4_1, Numbers(slots=2, run=16, span=32, mins=True)),
    "Q5_0": Layout(_q5_0, Numbers(slots=2, run=32, span=32, high=1, offset=16)),
    "Q5_1": Layout(_q5_1, Numbers(slots=2, run=32, span=32, high=1, mins=True)),
    "Q2_K": Layout(_q2_k, Numbers(slots=4, run=32, span=16, supers=True, mins=True)),
    "Q3_K": Layout(_q3_k, Numbers(slots=4, run=32, span=16, high=1, supers=True, offset=4)),
    "IQ4_NL": Layout(_iq4_nl, Numbers(slots=1, run=32, span=32, signed=True)),
    "IQ4_XS": Layout(_iq4_xs, Numbers(slots=1, run=32, span=32, signed=True, supers=True)),
    "MXFP4": Layout(_mxfp4, Numbers(slots=1, run=32, span=32, signed=True)),
    "NVFP4": Layout(_nvfp4, Numbers(slots=1, run=32, span=16, signed=True)),
    "F16": Layout(_plain(torch.float16), values=2),
    "BF16": Layout(_plain(torch.bfloat16), values=1),
    "F32": Layout(_plain(torch.float32), values=3),
}
