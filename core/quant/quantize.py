"""Quantise float32 rows to Q4_K and Q6_K in numpy, for the demonstration and for tests. Not for publishing models.

Plain rounding to the range of each sub-block, without llama.cpp's search for better scales: more error, far less code.
Source of the layouts: gguf-py 0.19, gguf/quants.py. Rows are padded with zeros to whole blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from core.system.arrays import Bytes, Floats32

BLOCK = 256
CHUNK = 2048  # blocks worked at once: their floats stay in the cache


def quantise_q4_k(x: Floats32) -> Bytes:
    """Quantise [rows, cols] to [rows, ceil(cols / 256) * 144]; x must be finite."""
    return _over_blocks(x, 144, _q4_k)


def quantise_q6_k(x: Floats32) -> Bytes:
    """Quantise [rows, cols] to [rows, ceil(cols / 256) * 210]; x must be finite."""
    return _over_blocks(x, 210, _q6_k)


QUANTISERS: dict[str, Callable[[Floats32], Bytes]] = {"Q4_K": quantise_q4_k, "Q6_K": quantise_q6_k}


def _over_blocks(x: Floats32, block_bytes: int, quantise: Callable[[Floats32, Bytes], None]) -> Bytes:
    rows, cols = x.shape
    n = -(-cols // BLOCK)
    if n * BLOCK != cols:
        x = np.pad(x, ((0, 0), (0, n * BLOCK - cols)))
    blocks = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, BLOCK)
    out = np.empty((len(blocks), block_bytes), dtype=np.uint8)
    for start in range(0, len(blocks), CHUNK):
        quantise(blocks[start:start + CHUNK], out[start:start + CHUNK])
    return out.reshape(rows, n * block_bytes)


def _store_half(value: Floats32, out: Bytes) -> Floats32:
    """Write values [n] as float16 into bytes [n, 2]; returns what was stored, as [n, 1]."""
    half = value.astype("<f2")
    out[:] = half.view(np.uint8).reshape(-1, 2)
    return half.astype(np.float32)[:, None]


def _ratio(a: Floats32, b: Floats32) -> Floats32:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32), where=b != 0)


def _q4_k(x: Floats32, out: Bytes) -> None:
    """x = d * scale * q - dmin * min, for eight sub-blocks of 32; scale and min have 6 bits, q has 4."""
    sub = x.reshape(-1, 8, 32)
    least = -np.minimum(sub.min(axis=2), 0)
    step = (sub.max(axis=2).clip(0) + least) / np.float32(15)
    d = _store_half(step.max(axis=1) / 63, out[:, 0:2])
    dmin = _store_half(least.max(axis=1) / 63, out[:, 2:4])
    scale = np.rint(_ratio(step, d)).clip(0, 63)
    low = np.rint(_ratio(least, dmin)).clip(0, 63)
    q = sub * _ratio(np.ones_like(step), d * scale)[:, :, None]
    q += _ratio(dmin * low, d * scale)[:, :, None]
    np.rint(q, out=q)
    nibbles = q.clip(0, 15, out=q).astype(np.uint8).reshape(-1, 4, 2, 32)
    s, m = scale.astype(np.uint8), low.astype(np.uint8)
    out[:, 4:8] = s[:, :4] | (s[:, 4:] >> 4 << 6)
    out[:, 8:12] = m[:, :4] | (m[:, 4:] >> 4 << 6)
    out[:, 12:16] = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    out[:, 16:] = (nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)).reshape(-1, 128)


def _q6_k(x: Floats32, out: Bytes) -> None:
    """x = d * scale * (q - 32), for sixteen sub-blocks of 16; scale is an int8, q has 6 bits."""
    sub = x.reshape(-1, 16, 16)
    step = np.maximum(sub.max(axis=2), -sub.min(axis=2)) / np.float32(31)
    d = _store_half(step.max(axis=1) / 127, out[:, 208:210])
    scale = np.rint(_ratio(step, d)).clip(0, 127)
    q = sub * _ratio(np.ones_like(step), d * scale)[:, :, None]
    np.rint(q, out=q)
    six = (q.clip(-32, 31, out=q) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    out[:, :128] = ((six[:, :, :2] & 15) | ((six[:, :, 2:] & 15) << 4)).reshape(-1, 128)
    high = six >> 4
    out[:, 128:192] = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    out[:, 192:208] = scale.astype(np.uint8)
