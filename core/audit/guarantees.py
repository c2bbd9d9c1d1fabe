"""Table of what the writers of each quant type guarantee of every block, and how to hold packed blocks to it.

No tensor is known here; blocks.py walks them. Shapes: raw is uint8 [n, B], n blocks of B bytes; results are bool [n].
Source: the reference quantisers of ggml (ggml-quants.c, 2026-06), whose largest value, or whose largest scale of a
block of 256, is stored as the type's extreme level. An importance matrix gives other blocks: a file is held to its
extremes only where nearly all of it keeps them (blocks.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.system.arrays import Bytes

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

NIBBLES, BYTES = (0x1111111111111111, 0x8888888888888888), (0x0101010101010101, 0x8080808080808080)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What each block of a type has. positive: bytes where scales stand that are never below 0.

    lacks: says which blocks lack their extreme level; None where the type's writer promises none.
    """

    positive: tuple[int, ...] = ()
    lacks: Callable[[Bytes], Mask] | None = None


def _words(raw: Bytes, start: int, stop: int) -> Words:
    """The bytes of each block as words of 64 bits, a row for each: [(stop - start) / 8, n]."""
    words = np.empty(((stop - start) // 8, len(raw)), "<u8")
    for i, row in enumerate(words):
        row[:] = raw[:, start + 8 * i:start + 8 * i + 8].view("<u8")[:, 0]
    return words


def _has(words: Words, level: int, lanes: tuple[int, int]) -> Mask:
    """Whether a block has a lane of that level: a lane of zero borrows into its own high bit."""
    ones, tops = (np.uint64(n) for n in lanes)
    any_W: Words | None = None
    for word in words:
        off = word ^ np.uint64(lanes[0] * level) if level else word
        found = off - ones
        found &= ~off
        any_W = found if any_W is None else np.bitwise_or(any_W, found, out=any_W)
    assert any_W is not None
    return np.asarray((any_W & tops) != 0)


def half_bits(raw: Bytes, at: int) -> npt.NDArray[np.uint16]:
    """The float16 at a byte of each block, as its bits [n]."""
    return raw[:, at:at + 2].view("<u2")[:, 0].copy()


def _is_zero(raw: Bytes, at: int) -> Mask:
    return np.asarray((half_bits(raw, at) & 0x7FFF) == 0)


def _q4_0(raw: Bytes) -> Mask:
    return ~(_has(_words(raw, 2, 18), 0, NIBBLES) | _is_zero(raw, 0))


def _q4_1(raw: Bytes) -> Mask:
    words = _words(raw, 4, 20)
    return ~((_has(words, 0, NIBBLES) & _has(words, 15, NIBBLES)) | _is_zero(raw, 0))


def _fifth(raw: Bytes, at: int) -> tuple[Bytes, Bytes]:
    """The 32 codes of 5 bits, halves [n, 16]; their fifth bits stand at a byte."""
    high = np.unpackbits(np.ascontiguousarray(raw[:, at:at + 4]), axis=1, bitorder="little") << np.uint8(4)
    low = raw[:, at + 4:at + 20]
    return (low & np.uint8(15)) | high[:, :16], (low >> np.uint8(4)) | high[:, 16:]


def _q5_0(raw: Bytes) -> Mask:
    first, second = (_words(codes, 0, 16) for codes in _fifth(raw, 2))
    return ~(_has(first, 0, BYTES) | _has(second, 0, BYTES) | _is_zero(raw, 0))


def _q5_1(raw: Bytes) -> Mask:
    first, second = (_words(codes, 0, 16) for codes in _fifth(raw, 4))
    both = [_has(first, level, BYTES) | _has(second, level, BYTES) for level in (0, 31)]
    return ~((both[0] & both[1]) | _is_zero(raw, 0))


def _q8_0(raw: Bytes) -> Mask:
    words = _words(raw, 2, 34)
    return ~(_has(words, 0x7F, BYTES) | _has(words, 0x81, BYTES) | _is_zero(raw, 0))


def _q2_k(raw: Bytes) -> Mask:
    scales = raw[:, :16]
    low, high = (scales & 15).max(1), (scales >> 4).max(1)
    return np.asarray(((low < 15) & ~_is_zero(raw, 80)) | ((high < 15) & ~_is_zero(raw, 82)))


def _q3_k(raw: Bytes) -> Mask:
    low, high = raw[:, 96:104], raw[:, 104:108]
    scales = np.concatenate([low & 15, low >> 4], 1)
    scales = scales | np.concatenate([((high >> shift) & 3) << 4 for shift in (0, 2, 4, 6)], 1)
    return np.asarray((scales.min(1) > 0) & ~_is_zero(raw, 108))


def _q4_k(raw: Bytes) -> Mask:
    """Of Q5_K as well: the twelve bytes behind d and dmin hold eight scales and eight minima of six bits."""
    b = raw[:, 4:16]
    scales = np.concatenate([b[:, :4] & 63, (b[:, 8:] & 15) | ((b[:, :4] >> 6) << 4)], 1)
    minima = np.concatenate([b[:, 4:8] & 63, (b[:, 8:] >> 4) | ((b[:, 4:8] >> 6) << 4)], 1)
    lacks_scale, lacks_minimum = (codes.max(1) < 63 for codes in (scales, minima))
    return np.asarray((lacks_scale & ~_is_zero(raw, 0)) | (lacks_minimum & ~_is_zero(raw, 2)))


def _q6_k(raw: Bytes) -> Mask:
    return ~(_has(_words(raw, 192, 208), 0x80, BYTES) | _is_zero(raw, 208))


GUARANTEES = {
    "Q4_0": Guarantee(lacks=_q4_0), "Q4_1": Guarantee((0,), _q4_1),
    "Q5_0": Guarantee(lacks=_q5_0), "Q5_1": Guarantee((0,), _q5_1),
    "Q8_0": Guarantee((0,), _q8_0),
    "Q2_K": Guarantee((80, 82), _q2_k), "Q3_K": Guarantee(lacks=_q3_k),
    "Q4_K": Guarantee((0, 2), _q4_k), "Q5_K": Guarantee((0, 2), _q4_k), "Q6_K": Guarantee(lacks=_q6_k),
    "IQ2_XXS": Guarantee((0,)), "IQ2_XS": Guarantee((0,)), "IQ2_S": Guarantee((0,)), "IQ3_XXS": Guarantee((0,)),
    "IQ3_S": Guarantee((0,)), "IQ1_S": Guarantee((0,)), "TQ1_0": Guarantee((52,)), "TQ2_0": Guarantee((64,)),
}
PLAIN = {  # of types that store values by themselves: how to read them, the bits of an exponent, all but the sign
    "F32": ("<u4", 0x7F800000, 0x7FFFFFFF), "F16": ("<u2", 0x7C00, 0x7FFF), "BF16": ("<u2", 0x7F80, 0x7FFF),
    "F64": ("<u8", 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
}
