"""Quantise float32 rows to a GGUF type, for twins of trained files. Not llama.cpp's quantisers: no search.

Plain types are gguf-py's own; the K-quants are rounded here to the range of each sub-block, from the layouts in
gguf-py 0.19 (gguf/quants.py), so that nothing of the product's code stands on both sides of a test.
Letters: N super-blocks of 256, S sub-blocks of one, W weights of a sub-block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 256


def encode(values: Floats, kind: T) -> Bytes:
    """Quantise values [..., cols] to the type's bytes, flat; cols must be whole blocks of it."""
    x = np.ascontiguousarray(values, dtype=np.float32)
    if kind == T.F32:
        return x.reshape(-1).view(np.uint8)
    if kind == T.F16:
        return x.astype("<f2").reshape(-1).view(np.uint8)
    make = K_QUANTS.get(kind)
    return (make(x.reshape(-1, BLOCK)) if make else quantize(x, kind)).reshape(-1)


def decode(data: Bytes, kind: T, shape: tuple[int, ...]) -> Floats:
    """Values of a tensor's bytes, by gguf-py."""
    if kind == T.F32:
        return np.array(data).view("<f4").reshape(shape)
    if kind == T.F16:
        return np.array(data).view("<f2").astype(np.float32).reshape(shape)
    return dequantize(np.array(data).reshape(shape[0], -1), kind).reshape(shape)


def fits(kind: T, cols: int) -> bool:
    """Whether rows of that length are whole blocks of the type."""
    return cols % GGML_QUANT_SIZES[kind][0] == 0


def other_rounding_q4_1(values: Floats, narrow: float, weights: Floats | None = None) -> Bytes:
    """Q4_1 by another quantiser: each block's range narrowed about its middle, or, with weights, the best of five.

    x = d * q + m; weights [..., cols] is what an importance matrix would say of each weight's error.
    """
    x = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, 32)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    middle, half = (low + high) / 2, (high - low) / 2
    best: tuple[Floats, Floats, Floats] | None = None
    least = np.full((len(x), 1), np.inf, np.float32)
    for part in (narrow,) if weights is None else (1.0, 0.97, 0.94, 0.91, 0.88):
        d, m = _half(2 * half * part / 15), _half(middle - half * part)
        q = np.rint(_ratio(x - m, d)).clip(0, 15)
        cost = (np.ones_like(x) if weights is None else weights.reshape(-1, 32)) * (d * q + m - x) ** 2
        total = cost.sum(1, keepdims=True)
        better = total < least
        least = np.where(better, total, least)
        found = (d, m, q)
        best = found if best is None else tuple(np.where(better, n, o) for n, o in zip(found, best, strict=True))
    assert best is not None
    d, m, q = best
    nibbles = q.astype(np.uint8)
    return np.concatenate(
        [_half_bytes(d), _half_bytes(m), nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1).reshape(-1)


def _half(x: Floats) -> Floats:
    """Round to float16 and back."""
    return np.asarray(x, np.float32).astype("<f2").astype(np.float32)


def _half_bytes(x_N: Floats) -> Bytes:
    return np.ascontiguousarray(x_N.reshape(-1, 1).astype("<f2")).view(np.uint8)


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32), where=b != 0)


def _ranged(x: Floats, n_sub: int, levels: int, most: int) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """Round to d * scale * q - dmin * min; returns d [N, 1], dmin [N, 1], scale and min [N, S], q [N, 256]."""
    sub = x.reshape(len(x), n_sub, -1)
    low = np.maximum(-sub.min(2), 0)
    step = (np.maximum(sub.max(2), 0) + low) / levels
    d, dmin = (_half(v.max(1, keepdims=True) / most) for v in (step, low))
    scale, least = np.rint(_ratio(step, d)).clip(0, most), np.rint(_ratio(low, dmin)).clip(0, most)
    q = np.rint(_ratio(sub + (dmin * least)[..., None], (d * scale)[..., None])).clip(0, levels)
    return d, dmin, scale.astype(np.uint8), least.astype(np.uint8), q.reshape(len(x), -1).astype(np.uint8)


def _signed(x: Floats, low: int, most: int) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Round to d * scale * q, q in low..-low - 1; returns d [N, 1], scale [N, 16] of -most..most - 1, q [N, 256]."""
    sub = x.reshape(len(x), 16, 16)
    peak = np.take_along_axis(sub, np.abs(sub).argmax(2, keepdims=True), 2)[..., 0]
    step = peak / low
    d = _half(np.take_along_axis(step, np.abs(step).argmax(1, keepdims=True), 1) / -most)
    scale = np.rint(_ratio(step, d)).clip(-most, most - 1)
    q = np.rint(_ratio(sub, (d * scale)[..., None])).clip(low, -low - 1)
    return d, scale.astype(np.int64), q.reshape(len(x), -1).astype(np.int64)


def _pack_2bit(q: Bytes) -> Bytes:
    """Elements of each half of 128 by 32: bits 0-1 the first 32, bits 2-3 the next, and on; [N, 256] to [N, 64]."""
    part = q.reshape(len(q), 2, 4, 32)
    return (part[:, :, 0] | part[:, :, 1] << 2 | part[:, :, 2] << 4 | part[:, :, 3] << 6).reshape(len(q), 64)


def _pack_scales(scale: Bytes, least: Bytes) -> Bytes:
    """Eight scales and eight minima of six bits in twelve bytes."""
    return np.concatenate([
        scale[:, :4] | (scale[:, 4:] >> 4) << 6, least[:, :4] | (least[:, 4:] >> 4) << 6,
        scale[:, 4:] & 15 | (least[:, 4:] & 15) << 4], axis=1)


def _nibbles(q: Bytes) -> Bytes:
    """Chunks of 64: the first 32 in the low nibble, the next in the high one; [N, 256] to [N, 128]."""
    part = (q & 15).reshape(len(q), 4, 2, 32)
    return (part[:, :, 0] | part[:, :, 1] << 4).reshape(len(q), 128)


def _q2_k(x: Floats) -> Bytes:
    d, dmin, scale, least, q = _ranged(x, 16, 3, 15)
    return np.concatenate([scale | least << 4, _pack_2bit(q), _half_bytes(d), _half_bytes(dmin)], axis=1)


def _q3_k(x: Floats) -> Bytes:
    d, scale, q = _signed(x, -4, 32)
    code, level = (scale + 32).astype(np.uint8), (q + 4).astype(np.uint8)
    high = (level >> 2).reshape(len(x), 8, 32)
    mask = np.bitwise_or.reduce([high[:, i] << i for i in range(8)])
    top = (code >> 4).reshape(len(x), 4, 4)
    packed = np.concatenate([
        code[:, :8] & 15 | (code[:, 8:] & 15) << 4, np.bitwise_or.reduce([top[:, i] << 2 * i for i in range(4)])], 1)
    return np.concatenate([mask, _pack_2bit(level & 3), packed, _half_bytes(d)], axis=1)


def _q4_k(x: Floats) -> Bytes:
    d, dmin, scale, least, q = _ranged(x, 8, 15, 63)
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), _pack_scales(scale, least), _nibbles(q)], axis=1)


def _q5_k(x: Floats) -> Bytes:
    d, dmin, scale, least, q = _ranged(x, 8, 31, 63)
    high = (q >> 4).reshape(len(x), 8, 32)
    mask = np.bitwise_or.reduce([high[:, i] << i for i in range(8)])
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), _pack_scales(scale, least), mask, _nibbles(q)], axis=1)


def _q6_k(x: Floats) -> Bytes:
    d, scale, q = _signed(x, -32, 128)
    part = (q + 32).astype(np.uint8).reshape(len(x), 2, 4, 32)
    low, high = part & 15, part >> 4
    nibbles = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2).reshape(len(x), 128)
    bits = np.bitwise_or.reduce([high[:, :, i] << 2 * i for i in range(4)]).reshape(len(x), 64)
    return np.concatenate([nibbles, bits, scale.astype(np.int8).view(np.uint8), _half_bytes(d)], axis=1)


K_QUANTS: dict[T, Callable[[Floats], Bytes]] = {
    T.Q2_K: _q2_k, T.Q3_K: _q3_k, T.Q4_K: _q4_k, T.Q5_K: _q5_k, T.Q6_K: _q6_k}
