"""The product of one token: each weight's whole number meets three digits of the activation, four at a time (dp4a).

The sums over a chunk of 16 bytes are exact; scales are applied to them in float32. Its caller: products.py.
Shapes: R rows of a program, P chunks at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.gpu.blocks import block_scale, dot_four, first_column, group_scales, high_bits, quarters


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
def _high_words(QUANT: tl.constexpr, high, group, chunk, word, inside, w):
    """The words that hold the high bits of chunks [R, P, 4]; w where the type has none."""
    if QUANT == "Q5_K":
        return tl.load(high + (group * 8 + chunk % 2 * 4)[:, :, None] + word, mask=inside[:, :, None], other=0)
    elif QUANT == "Q6_K":
        far = chunk // 4 * 8 + chunk % 2 * 4
        return tl.load(high + (group * 16 + far)[:, :, None] + word, mask=inside[:, :, None], other=0)
    else:
        return w


@triton.jit
def one_token(
    quants, high, scales, supers, digits, units, sums, out, rows, n_group,
    QUANT: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, G: tl.constexpr, STAGES: tl.constexpr,
):
    CHUNKS: tl.constexpr = 16 if QUANT == "Q8_0" else 8  # of 16 bytes, in a group
    SLOTS: tl.constexpr = 1 if QUANT == "Q8_0" else 2
    SIGNED: tl.constexpr = QUANT == "Q8_0"
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
        h = _high_words(QUANT, high, group, chunk[None, :], word, inside, w)
        d, least = group_scales(QUANT, supers, group, inside)
        unit = tl.load(units + g, mask=g < n_group, other=0.0)[None, :]
        for slot in tl.static_range(SLOTS):
            column = first_column(QUANT, chunk, slot)
            number = w
            if SLOTS == 2:
                number = (w >> (4 * slot)) & 0x0F0F0F0F
            if QUANT == "Q5_K" or QUANT == "Q6_K":
                number |= high_bits(QUANT, h, chunk[None, :, None], slot, 0x01010101)
            x = digits + (g * 64 + column // 4)[:, None] + word[None, :]
            there = (g < n_group)[:, None]
            total = _dot_digits(number, x, n_group * 64, there, SIGNED, INTERPRETED, R, G * CHUNKS)
            s, m = block_scale(QUANT, scales, group, column[None, :], d, least, inside)
            acc += s * (total * unit)
            if not SIGNED:
                acc -= m * tl.load(sums + g * 16 + column // 16, mask=g < n_group, other=0.0)[None, :]
    tl.store(out + row, tl.sum(acc, 1), mask=row < rows)
