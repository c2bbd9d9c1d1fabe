"""What the Triton kernels know of stored blocks: where a value stands, its scale, its bits. Called in kernels only.

A value is scale * number - minimum; numbers count from 0 (Q8_0: signed). planes.py says what group, chunk and slot are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_column(QUANT: tl.constexpr, chunk, slot: tl.constexpr):
    """The first column, in its group, of a slot of a chunk of 16 bytes."""
    if QUANT == "Q4_K" or QUANT == "Q5_K":
        return chunk // 2 * 64 + chunk % 2 * 16 + 32 * slot
    elif QUANT == "Q6_K":
        return chunk // 4 * 128 + chunk % 4 * 16 + 64 * slot
    elif QUANT == "Q4_0":
        return chunk * 32 + 16 * slot
    else:
        return chunk * 16


@triton.jit
def group_scales(QUANT: tl.constexpr, supers, group, inside):
    """d and dmin of each group."""
    if QUANT == "Q4_K" or QUANT == "Q5_K":
        d = tl.load(supers + 2 * group, mask=inside, other=0.0).to(tl.float32)
        least = tl.load(supers + 2 * group + 1, mask=inside, other=0.0).to(tl.float32)
    elif QUANT == "Q6_K":
        d = tl.load(supers + group, mask=inside, other=0.0).to(tl.float32)
        least = 32 * d
    else:
        d = 0.0
        least = 0.0
    return d, least


@triton.jit
def block_scale(QUANT: tl.constexpr, scales, group, column, d, least, inside):
    """Scale and minimum at a column of each group."""
    if QUANT == "Q4_K" or QUANT == "Q5_K":
        at = scales + 16 * group + column // 32
        s = d * tl.load(at, mask=inside, other=0).to(tl.float32)
        m = least * tl.load(at + 8, mask=inside, other=0).to(tl.float32)
    elif QUANT == "Q6_K":
        each = tl.load(scales + 16 * group + column // 16, mask=inside, other=0).to(tl.float32)
        s = d * each
        m = least * each
    else:
        s = tl.load(scales + 8 * group + column // 32, mask=inside, other=0.0).to(tl.float32)
        m = 8 * s
    return s, m


@triton.jit
def high_bits(QUANT: tl.constexpr, h, chunk, slot: tl.constexpr, UNIT: tl.constexpr):
    """The high bits of a slot's numbers, in place; UNIT has a 1 for each number that a word holds."""
    if QUANT == "Q5_K":
        return ((h >> (chunk // 2 * 2 + slot)) & UNIT) << 4
    else:
        return ((h >> (chunk % 4 // 2 * 2 + 4 * slot)) & (3 * UNIT)) << 4


@triton.jit
def to_bfloat16(x, INTERPRETED: tl.constexpr):
    """Round to the nearest, ties to even; the interpreter's own cast cuts off."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def dot_bfloat16(w, x, INTERPRETED: tl.constexpr):
    """w x of bfloat16 values in float32; the interpreter multiplies no bfloat16, so there they are widened."""
    if INTERPRETED:
        return tl.dot(w.to(tl.float32), x.to(tl.float32))
    return tl.dot(w, x)


@triton.jit
def dot_four(w, x, total, SIGNED: tl.constexpr, INTERPRETED: tl.constexpr):
    """Add to total the products of the four bytes of w, signed or not, and the four signed bytes of x."""
    if INTERPRETED:
        for b in tl.static_range(4):
            byte = (w << (24 - 8 * b)) >> 24
            total += (byte if SIGNED else byte & 255) * ((x << (24 - 8 * b)) >> 24)
        return total
    if SIGNED:
        return tl.inline_asm_elementwise("dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [w, x, total], tl.int32, True, 1)
    return tl.inline_asm_elementwise("dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [w, x, total], tl.int32, True, 1)


@triton.jit
def quarters(x, M: tl.constexpr, N: tl.constexpr):
    """The four words of the last axis of x [M, N, 4], each [M, N]."""
    even, odd = tl.split(tl.reshape(x, (M, N, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def numbers(QUANT: tl.constexpr, slot: tl.constexpr, w, h, chunk):
    """The whole numbers of a slot of bytes w, with their high bits h where the type has some."""
    number = w.to(tl.int32)
    if QUANT != "Q8_0":
        number = (number >> (4 * slot)) & 15
    if QUANT == "Q5_K" or QUANT == "Q6_K":
        number |= high_bits(QUANT, h.to(tl.int32), chunk, slot, 1)
    return number
