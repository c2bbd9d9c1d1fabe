"""The product of one token: each weight's whole number meets three digits of the activation, four at a time (dp4a).

The sums over a chunk of 16 bytes are exact; scales are applied to them in float32. Its caller: products.py.
Shapes: R rows of a program, P chunks at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.gpu.blocks import (
    block_scale,
    dot_four,
    first_column,
    first_high_byte,
    group_scales,
    high_bits,
    quarters,
)


@triton.jit
def _dot_digits(
    w, digits, step, there, SIGNED: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, P: tl.constexpr
):
    """Words w [R, P, 4] times the three digits of the activations [P, 4], summed over the last axis, each sum exact."""
    total = tl.zeros((R, P), tl.float32)
    a, b, c, d = quarters(w, R, P)
    for digit in tl.static_range(3):
        p, q, r, s = quarters(tl.load(digits + digit * step, mask=there, other=0)[None, :, :], 1, P)
        part = dot_four(a, p, tl.zeros((R, P), tl.int32), SIGNED, INTERPRETED)
        part = dot_four(b, q, part, SIGNED, INTERPRETED)
        part = dot_four(c, r, part, SIGNED, INTERPRETED)
        part = dot_four(d, s, part, SIGNED, INTERPRETED)
        total = total * 256.0 + part.to(tl.float32)
    return total


@triton.jit
def _high_words(L: tl.constexpr, high, group, chunk, word, inside, w):
    """The words that hold the high bits of chunks [R, P, 4]; w where the type has none."""
    if L.high:
        at = group * (8 * L.high) + first_high_byte(L, chunk) // 4
        return tl.load(high + at[:, :, None] + word, mask=inside[:, :, None], other=0)
    else:
        return w


@triton.jit
def one_token(
    quants, high, scales, supers, digits, units, sums, out, rows, n_group,
    L: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, G: tl.constexpr, STAGES: tl.constexpr,
):
    SLOTS: tl.constexpr = L.slots
    CHUNKS: tl.constexpr = 16 // SLOTS  # of 16 bytes, in a group
    BITS: tl.constexpr = 8 // SLOTS
    UNIT: tl.constexpr = 0x01010101  # a 1 for each number of a word
    row = tl.program_id(0) * R + tl.arange(0, R)
    each = tl.arange(0, G * CHUNKS)
    word = tl.arange(0, 4)
    chunk = each % CHUNKS
    acc = tl.zeros((R, G * CHUNKS), tl.float32)
    for start in tl.range(0, n_group, G, num_stages=STAGES):  # without tl.dot only a loop's own number pipelines it
        g = start + each // CHUNKS
        inside = (row < rows)[:, None] & (g < n_group)[None, :]
        group = row.to(tl.int64)[:, None] * n_group + g[None, :]
        at = (group * CHUNKS + chunk[None, :])[:, :, None] * 4 + word[None, None, :]
        w = tl.load(quants + at, mask=inside[:, :, None], other=0)
        h = _high_words(L, high, group, chunk[None, :], word, inside, w)
        d, least = group_scales(L, supers, group, inside)
        unit = tl.load(units + g, mask=g < n_group, other=0.0)[None, :]
        for slot in tl.static_range(SLOTS):
            column = first_column(L, chunk, slot)
            number = w
            if SLOTS > 1:
                number = (w >> (BITS * slot)) & ((2**BITS - 1) * UNIT)
            if L.high:
                number |= high_bits(L, h, chunk[None, :, None], slot, UNIT)
            x = digits + (g * 64 + column // 4)[:, None] + word[None, :]
            there = (g < n_group)[:, None]
            total = _dot_digits(number, x, n_group * 64, there, L.signed, INTERPRETED, R, G * CHUNKS)
            s, m = block_scale(L, scales, group, column[None, :], d, least, inside)
            acc += s * (total * unit)
            if not L.signed:
                acc -= m * tl.load(sums + g * 16 + column // 16, mask=g < n_group, other=0.0)[None, :]
    tl.store(out + row, tl.sum(acc, 1), mask=row < rows)
