"""Decode stored weights to float32, exactly as gguf-py does, on any torch device. It keeps and multiplies nothing.

In torch (DECODERS), else by gguf-py, several times slower; kernels/cpu/decoding.py has compiled ones of the same bits.
Shapes: n blocks, B bytes of a block, V values of a block. raw is uint8 [n, B], out float32 [n, V].
Source of the layouts: gguf-py 0.19, gguf/quants.py; APR_Q4 and APR_Q8: apr-format v2.
d * scale * q is exact in float32 (11 + 6 + 5 bits; Q6_K: 11 + 7 + 6), so only the last subtraction rounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from core.quant.types import QUANTS, Quant, row_bytes
from core.quant.weight import Weight
from core.system.errors import FileError

CHUNK = 1 << 21  # weights decoded at once: measured best from 2^18 to 2^22, and 25 MB of temporaries at most


def decode_rows(
    weight: Weight, start: int, stop: int, device: str | torch.device = "cpu", out: Tensor | None = None
) -> Tensor:
    """Decode rows start..stop (elements of a vector) into out, or a new tensor, contiguous in 64-byte aligned memory.

    Give out again and again: a new tensor's page faults cost as much as the decoding.
    Shapes: [stop - start, cols]; a vector's is [stop - start]. Leading dimensions of experts count as rows.
    """
    quant, cols = QUANTS[weight.quant], weight.shape[-1] if weight.shape else 1
    if len(weight.shape) <= 1:
        whole = decode_rows(Weight(weight.name, weight.quant, (1, cols), weight.data), 0, 1, device)[0, start:stop]
        return whole.clone() if out is None else out.copy_(whole)
    if out is None:
        out = torch.empty((stop - start, cols), dtype=torch.float32, device=device)
    assert out.is_contiguous() and tuple(out.shape) == (stop - start, cols), f"out is {tuple(out.shape)}"
    step = max(1, CHUNK // max(cols, 1))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        part = out[first - start:last - start]
        if quant.whole:
            _decode_whole(weight, quant, first * cols, last * cols, part)
        else:
            _decode_padded(weight, quant, first, last, part)
    return out


def decode_weight(weight: Weight, device: str | torch.device = "cpu") -> Tensor:
    """Decode a whole tensor, in its own shape."""
    if len(weight.shape) <= 1:
        return decode_rows(weight, 0, prod(weight.shape), device).view(weight.shape)
    return decode_rows(weight, 0, prod(weight.shape[:-1]), device).view(weight.shape)


def embedding_rows(weight: Weight, ids: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """Decode only the rows of these token ids: [T, D]."""
    quant, (_, cols) = QUANTS[weight.quant], weight.shape
    if quant.whole:
        return torch.cat([decode_rows(weight, i, i + 1, device) for i in ids])
    rows = weight.data.reshape(-1, row_bytes(quant, cols))[np.asarray(ids, dtype=np.int64)]
    return decode_rows(Weight(weight.name, weight.quant, (len(rows), cols), rows.reshape(-1)), 0, len(rows), device)


def decode_by_gguf(weight: Weight, row: int) -> Tensor | None:
    """Decode one row (a vector's is 0) by gguf-py; None where it knows no such type, or no decoder but its own does.

    Shapes: [cols].
    """
    quant, cols = QUANTS[weight.quant], weight.shape[-1] if weight.shape else 1
    if quant.whole or quant.name not in DECODERS:
        return None
    size = row_bytes(quant, cols)
    try:
        values = _gguf_values(weight.name, quant, weight.data[row * size:(row + 1) * size])
        return torch.from_numpy(values).view(-1)[:cols]
    except FileError:
        return None


def _decode_padded(weight: Weight, quant: Quant, first: int, last: int, out: Tensor) -> None:
    """Rows that end at a block's end; what a padded row has beyond cols is dropped."""
    cols, size = out.shape[1], row_bytes(quant, out.shape[1])
    data = weight.data[first * size:last * size]
    padded = size // quant.block_bytes * quant.block
    whole = out if padded == cols else out.new_empty((len(out), padded))
    _decode_blocks(weight.name, quant, data, whole.view(-1, quant.block))
    if whole is not out:
        out.copy_(whole[:, :cols])


def _decode_whole(weight: Weight, quant: Quant, first: int, last: int, out: Tensor) -> None:
    """Values first..last of a type whose blocks run through the tensor without regard to rows."""
    block, end = first // quant.block, -(-last // quant.block)
    data = weight.data[quant.head_bytes + block * quant.block_bytes:quant.head_bytes + end * quant.block_bytes]
    values = out.new_empty((end - block, quant.block))
    _decode_blocks(weight.name, quant, data, values)
    if quant.head_bytes:
        values *= float(np.frombuffer(weight.data[:quant.head_bytes].tobytes(), dtype="<f4")[0])
    skip = first - block * quant.block
    out.view(-1).copy_(values.view(-1)[skip:skip + last - first])


def _decode_blocks(name: str, quant: Quant, data: np.ndarray, out: Tensor) -> None:
    decoder = DECODERS.get(quant.name)
    if decoder is None:
        out.copy_(torch.from_numpy(_gguf_values(name, quant, data)).view(out.shape))
        return
    raw = torch.empty(data.size, dtype=torch.uint8)  # a copy: the map is read-only and not aligned
    raw.numpy()[:] = data
    decoder(raw.to(out.device).view(-1, quant.block_bytes), out)


def _gguf_values(name: str, quant: Quant, data: np.ndarray) -> np.ndarray:
    """Decode on the CPU by gguf-py; a NaN or Inf scale warns nobody here: it shows in the values."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType[quant.name]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            values: np.ndarray = dequantize(np.array(data).reshape(-1, quant.block_bytes), kind)
    except (KeyError, NotImplementedError) as error:
        raise FileError(
            f"{name} is {quant.name}; the installed gguf package does not decode it. "
            "Install gguf 0.19 or newer, or re-quantise the file."
        ) from error
    return values


def _halves(raw: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, as float32 [n, 1]."""
    return raw[:, at:at + 2].contiguous().view(torch.float16).float()


def _plain(dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    def decode(raw: Tensor, out: Tensor) -> None:
        out.copy_(raw.view(dtype))

    return decode


def _q4_0(raw: Tensor, out: Tensor) -> None:
    """out = d * (q - 8); the low nibbles are values 0..15, the high ones 16..31."""
    q = raw[:, 2:]
    out[:, :16].copy_((q & 15).view(torch.int8).sub_(8))
    out[:, 16:].copy_((q >> 4).view(torch.int8).sub_(8))
    out.mul_(_halves(raw, 0))


def _q4_1(raw: Tensor, out: Tensor) -> None:
    """out = d * q + m, in the order of Q4_0."""
    q = raw[:, 4:]
    out[:, :16].copy_(q & 15)
    out[:, 16:].copy_(q >> 4)
    out.mul_(_halves(raw, 0)).add_(_halves(raw, 2))


def _fifth_bits(raw: Tensor, at: int) -> Tensor:
    """The 32 bits at a byte of each block, one a value, as 0 or 16 [n, 32]."""
    shift = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw[:, at:at + 4, None] >> shift) & 1).bitwise_left_shift_(4).flatten(1)


def _q5_0(raw: Tensor, out: Tensor) -> None:
    """out = d * (q - 16); the fifth bits of the 32 values stand in four bytes."""
    low, high = raw[:, 6:], _fifth_bits(raw, 2)
    out[:, :16].copy_(((low & 15) | high[:, :16]).view(torch.int8).sub_(16))
    out[:, 16:].copy_(((low >> 4) | high[:, 16:]).view(torch.int8).sub_(16))
    out.mul_(_halves(raw, 0))


def _q5_1(raw: Tensor, out: Tensor) -> None:
    """out = d * q + m, with fifth bits as Q5_0."""
    low, high = raw[:, 8:], _fifth_bits(raw, 4)
    out[:, :16].copy_((low & 15) | high[:, :16])
    out[:, 16:].copy_((low >> 4) | high[:, 16:])
    out.mul_(_halves(raw, 0)).add_(_halves(raw, 2))


def _q8_0(raw: Tensor, out: Tensor) -> None:
    """out = d * q."""
    out.copy_(raw[:, 2:].view(torch.int8)).mul_(_halves(raw, 0))


def _apr_q4(raw: Tensor, out: Tensor) -> None:
    """out = d * (q - 8); the low nibble of a byte is its even value, the high one the odd."""
    pairs = out.view(-1, 16, 2)
    q = raw[:, 2:]
    pairs[:, :, 0].copy_((q & 15).view(torch.int8).sub_(8))
    pairs[:, :, 1].copy_((q >> 4).view(torch.int8).sub_(8))
    out.mul_(_halves(raw, 0))


def _scales_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    """d * scale and dmin * min of the eight sub-blocks of Q4_K and Q5_K, each [n, 4, 2, 1].

    Bytes: d, dmin (f16); scales 0..3; mins 0..3 (6 bits, top two: sub-block i + 4's); low four bits of 4..7.
    Worked four bytes at a time, in int32 words.
    """
    n = len(raw)
    word = raw[:, :16].contiguous().view(torch.int32)  # d and dmin, scales, mins, low nibbles
    six = torch.empty((n, 2, 2), dtype=torch.int32, device=raw.device)  # scale or min, sub-blocks 0..3 or 4..7
    six[:, :, 0] = word[:, 1:3] & 0x3F3F3F3F
    high = (word[:, 1:3] >> 2) & 0x30303030
    high[:, 0] |= word[:, 3] & 0x0F0F0F0F
    high[:, 1] |= (word[:, 3] >> 4) & 0x0F0F0F0F
    six[:, :, 1] = high
    both = six.view(torch.uint8).view(n, 2, 8).float()
    both *= raw[:, :4].contiguous().view(torch.float16).float().view(n, 2, 1)
    return both[:, 0].view(n, 4, 2, 1), both[:, 1].view(n, 4, 2, 1)


def _two_bits(raw: Tensor, start: int) -> Tensor:
    """The two-bit values of 64 bytes [n, 16, 16]: 32 bytes hold four rows of them, the lowest bits first."""
    shift = torch.tensor([[0], [2], [4], [6]], dtype=torch.uint8, device=raw.device)
    return ((raw[:, start:start + 64].reshape(-1, 2, 1, 32) >> shift) & 3).reshape(-1, 16, 16)


def _q2_k(raw: Tensor, out: Tensor) -> None:
    """out = d * scale * q - dmin * min; a byte holds the scale (low four bits) and min of 16 values."""
    both, wide = raw[:, :16], out.view(-1, 16, 16)
    scale, least = ((part.float() * _halves(raw, at)).unsqueeze(2) for part, at in ((both & 15, 80), (both >> 4, 82)))
    wide.copy_(_two_bits(raw, 16)).mul_(scale).sub_(least)


def _q3_k(raw: Tensor, out: Tensor) -> None:
    """out = d * (scale - 32) * (q - 4 where the high bit is 0); scales of 6 bits: eight bytes low, four bytes high."""
    low, high = raw[:, 96:104], raw[:, 104:108]
    six = torch.cat((low & 15, low >> 4), 1) | torch.cat([(high >> at & 3) << 4 for at in (0, 2, 4, 6)], 1)
    scale = six.view(torch.int8).sub_(32).float() * _halves(raw, 108)
    shift = torch.arange(8, dtype=torch.uint8, device=raw.device).view(8, 1)
    missing = (((raw[:, None, :32] >> shift) & 1) ^ 1).bitwise_left_shift_(2).reshape(-1, 16, 16)
    q = _two_bits(raw, 32).view(torch.int8) - missing.view(torch.int8)
    out.view(-1, 16, 16).copy_(q).mul_(scale.unsqueeze(2))


def _q4_k(raw: Tensor, out: Tensor) -> None:
    """out = d * scale * q - dmin * min; 32 bytes hold sub-block 2i in low nibbles, 2i + 1 in high ones."""
    scale, least = _scales_k(raw)
    q, pairs = raw[:, 16:].view(-1, 4, 32), out.view(-1, 4, 2, 32)
    pairs[:, :, 0].copy_(q & 15)
    pairs[:, :, 1].copy_(q >> 4)
    pairs.mul_(scale).sub_(least)


def _q5_k(raw: Tensor, out: Tensor) -> None:
    """As Q4_K, with bit i of 32 more bytes as the fifth bit of sub-block i."""
    scale, least = _scales_k(raw)
    low, high, pairs = raw[:, 48:].view(-1, 4, 32), raw[:, None, 16:48], out.view(-1, 4, 2, 32)
    shift = torch.arange(8, dtype=torch.uint8, device=raw.device).view(8, 1)
    q = (high >> shift).bitwise_and_(1).bitwise_left_shift_(4).view(-1, 4, 2, 32)
    q[:, :, 0] |= low & 15
    q[:, :, 1] |= low >> 4
    pairs.copy_(q).mul_(scale).sub_(least)


def _q6_k(raw: Tensor, out: Tensor) -> None:
    """out = d * scale * (q - 32), a scale for 16 values. Low nibbles 128 bytes, high 2 bits 64, scales 16 x int8, d."""
    low, high = raw[:, :128].view(-1, 2, 64), raw[:, 128:192].view(-1, 2, 32)
    scale = raw[:, 192:208].view(torch.int8).float().mul_(_halves(raw, 208))
    q = torch.empty((len(raw), 2, 4, 32), dtype=torch.uint8, device=raw.device)
    wide = q.view(-1, 2, 2, 64)
    torch.bitwise_and(low, 15, out=wide[:, :, 0])
    torch.bitwise_right_shift(low, 4, out=wide[:, :, 1])
    q[:, :, 0] |= (high << 4) & 48
    q[:, :, 1] |= (high << 2) & 48
    q[:, :, 2] |= high & 48
    q[:, :, 3] |= (high >> 2) & 48
    out.copy_(q.view(torch.int8).sub_(32).view(out.shape))
    out.view(-1, 16, 16).mul_(scale.unsqueeze(2))


DECODERS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "F64": _plain(torch.float64),
    "I8": _plain(torch.int8),
    "U8": _plain(torch.uint8),
    "I16": _plain(torch.int16),
    "I32": _plain(torch.int32),
    "I64": _plain(torch.int64),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "APR_Q4": _apr_q4,
    "APR_Q8": _plain(torch.int8),
}
