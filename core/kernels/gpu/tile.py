"""The product of several tokens: tiles on the matrix units, of bfloat16 values whose products and parts are exact.

A whole number is one bfloat16 as it is; of the types without scales a value is one (BF16), two (F16) or three (F32).
The activations come in three parts (products.split). Sums are float32. Shapes: R rows and N tokens of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.gpu.blocks import (
    block_scale,
    dot_bfloat16,
    first_column,
    first_high_byte,
    group_scales,
    numbers,
    to_bfloat16,
)


@triton.jit
def _high_bytes(L: tl.constexpr, high, group, chunk, lane, inside, w):
    """The bytes that hold the high bits of a chunk of each group [R, lanes]; w where the type has none."""
    if L.high:
        at = group * (32 * L.high) + first_high_byte(L, chunk)
        return tl.load(high + at[:, None] + lane[None, :], mask=inside[:, None], other=0)
    else:
        return w


@triton.jit
def _dot_parts(w, parts, step, here, INTERPRETED: tl.constexpr):
    """w times the three parts of the activations [K, N]; the smallest first."""
    total = dot_bfloat16(w, tl.load(parts + 2 * step, mask=here, other=0.0), INTERPRETED)
    total += dot_bfloat16(w, tl.load(parts + step, mask=here, other=0.0), INTERPRETED)
    return total + dot_bfloat16(w, tl.load(parts, mask=here, other=0.0), INTERPRETED)


@triton.jit
def tile(
    quants, high, scales, supers, parts, sums, out, rows, width, n_group, n_token, step,
    L: tl.constexpr, HALVES: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):
    SLOTS: tl.constexpr = L.slots
    SPAN: tl.constexpr = min(32, L.run, L.span)  # columns of a slot under one scale, side by side
    CHUNKS: tl.constexpr = 256 // (SPAN * SLOTS)
    row, token = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * N + tl.arange(0, N)
    lane, inside, there = tl.arange(0, SPAN), row < rows, token < n_token
    share = tl.cdiv(n_group, tl.num_programs(2)) * CHUNKS
    acc = tl.zeros((R, N), tl.float32)
    for t in range(tl.program_id(2) * share, tl.minimum(tl.program_id(2) * share + share, n_group * CHUNKS)):
        g = t // CHUNKS
        chunk = (t & (CHUNKS - 1)) * (SPAN // 16)  # of 16 bytes; & tells the compiler more than %: not negative, even
        group = row.to(tl.int64) * n_group + g
        at = (group * (CHUNKS * SPAN) + chunk * 16)[:, None] + lane[None, :]
        w = tl.load(quants + at, mask=inside[:, None], other=0)
        h = _high_bytes(L, high, group, chunk, lane, inside, w)
        d, least = group_scales(L, supers, group, inside)
        for slot in tl.static_range(SLOTS):
            column = g * 256 + first_column(L, chunk, slot)
            x = parts + token.to(tl.int64)[None, :] * width + (column + lane)[:, None]
            here = (column + lane < width)[:, None] & there[None, :]
            s, m = block_scale(L, scales, group, column % 256, d, least, inside)
            value = numbers(L, slot, w, h, chunk).to(tl.float32)
            if HALVES:
                weight = value * s[:, None] - (0.0 if L.signed else m[:, None])
                acc += dot_bfloat16(to_bfloat16(weight, INTERPRETED), tl.load(x, mask=here, other=0.0), INTERPRETED)
            else:
                acc += s[:, None] * _dot_parts(value.to(tl.bfloat16), x, step, here, INTERPRETED)
                if not L.signed:
                    some = sums + token.to(tl.int64) * (n_group * 16) + column // 16
                    total = tl.load(some, mask=there, other=0.0)
                    if SPAN == 32:
                        total += tl.load(some + 1, mask=there, other=0.0)
                    acc -= m[:, None] * total[None, :]
    at = out + (tl.program_id(2) * n_token + token).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(at, acc, mask=inside[:, None] & there[None, :])


@triton.jit
def tile_plain(
    values, parts, out, rows, width, n_group, n_token, step,
    VALUES: tl.constexpr, HALVES: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):
    SPAN: tl.constexpr = 32
    row, token = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * N + tl.arange(0, N)
    lane, inside, there = tl.arange(0, SPAN), row < rows, token < n_token
    share = tl.cdiv(n_group, tl.num_programs(2)) * (256 // SPAN)
    acc = tl.zeros((R, N), tl.float32)
    for t in range(tl.program_id(2) * share, tl.minimum(tl.program_id(2) * share + share, n_group * (256 // SPAN))):
        column = t * SPAN + lane
        at = values + row.to(tl.int64)[:, None] * (n_group * 256) + column[None, :]
        value = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
        x = parts + token.to(tl.int64)[None, :] * width + column[:, None]
        here = (column < width)[:, None] & there[None, :]
        first = to_bfloat16(value, INTERPRETED)
        if HALVES:
            acc += dot_bfloat16(first, tl.load(x, mask=here, other=0.0), INTERPRETED)
        else:
            acc += _dot_parts(first, x, step, here, INTERPRETED)
            if VALUES > 1:  # more bits than a bfloat16 holds
                rest = tl.where(tl.abs(value) < float("inf"), value - first.to(tl.float32), 0.0)
                second = to_bfloat16(rest, INTERPRETED)
                acc += _dot_parts(second, x, step, here, INTERPRETED)
                if VALUES > 2:
                    third = to_bfloat16(rest - second.to(tl.float32), INTERPRETED)
                    acc += _dot_parts(third, x, step, here, INTERPRETED)
    at = out + (tl.program_id(2) * n_token + token).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(at, acc, mask=inside[:, None] & there[None, :])
