"""What the Triton kernels know of stored blocks: where a value stands, its scale, its bits. Called in kernels only.

L is the type's Numbers (planes.py), which says what group, chunk, slot and run are; its fields are known at compile
time. A value is scale * number - minimum; numbers count from 0, or are signed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_column(L: tl.constexpr, chunk, slot: tl.constexpr):
    """The first column, in its group, of a slot of a chunk of 16 bytes."""
    CHUNKS: tl.constexpr = L.run // 16  # of a run
    return chunk // CHUNKS * (L.run * L.slots) + chunk % CHUNKS * 16 + L.run * slot


@triton.jit
def group_scales(L: tl.constexpr, supers, group, inside):
    """d and dmin of each group."""
    d = 0.0
    least = 0.0
    if L.supers:
        if L.mins:
            d = tl.load(supers + 2 * group, mask=inside, other=0.0).to(tl.float32)
            least = tl.load(supers + 2 * group + 1, mask=inside, other=0.0).to(tl.float32)
        else:
            d = tl.load(supers + group, mask=inside, other=0.0).to(tl.float32)
    return d, least


@triton.jit
def block_scale(L: tl.constexpr, scales, group, column, d, least, inside):
    """Scale and minimum at a column of each group."""
    N: tl.constexpr = 256 // L.span
    at = scales + (2 * N if L.mins else N) * group + column // L.span
    s = tl.load(at, mask=inside, other=0).to(tl.float32)
    if L.supers:
        s = d * s
    if L.mins:
        m = tl.load(at + N, mask=inside, other=0).to(tl.float32)
        if L.supers:
            m = least * m
    else:
        m = L.offset * s
    return s, m


@triton.jit
def first_high_byte(L: tl.constexpr, chunk):
    """The byte of a group's high plane that belongs to the first byte of a chunk; all its slots share it."""
    column = first_column(L, chunk, 0)
    return column // (256 // L.high) * 32 + column % 32


@triton.jit
def high_bits(L: tl.constexpr, h, chunk, slot: tl.constexpr, UNIT: tl.constexpr):
    """The high bits of a slot's numbers, in place; UNIT has a 1 for each number that a word holds."""
    MASK: tl.constexpr = (2**L.high - 1) * UNIT
    return ((h >> (first_column(L, chunk, slot) // 32 % (8 // L.high) * L.high)) & MASK) << (8 // L.slots)


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
def numbers(L: tl.constexpr, slot: tl.constexpr, w, h, chunk):
    """The whole numbers of a slot of bytes w, with their high bits h where the type has some."""
    BITS: tl.constexpr = 8 // L.slots
    number = w.to(tl.int32)
    if L.slots > 1:
        number = (number >> (BITS * slot)) & (2**BITS - 1)
    if L.high:
        number |= high_bits(L, h.to(tl.int32), chunk, slot, 1)
    return number
