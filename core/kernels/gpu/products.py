"""Multiply float32 activations by weights that stay quantised on a GPU: Triton kernels, and the choice between them.

One token: an activation becomes a 24-bit whole number of its group of 256, as three signed bytes, and the weight's
whole numbers meet them four at a time (dp4a); those sums are exact, scales are applied to them in float32.
More tokens: tiles on the matrix units. Those take bfloat16, so an activation is split into three (3 x 8 bits hold its
24) and a weight's whole number is one as it is; the products are exact, sums are float32. No TF32 anywhere.
A token's sum does not depend on the tokens beside it, but on their number: it chooses the kernel.
Shapes: R rows and N tokens of a program, G groups at a time. planes.py says what a group, a chunk and a slot are.
An activation of Inf may leave NaN where float32 has Inf; a NaN stays NaN.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.kernels.gpu.blocks import to_bfloat16
from core.kernels.gpu.one_token import one_token
from core.kernels.gpu.planes import GROUP, LAYOUTS, Planes
from core.kernels.gpu.tile import tile, tile_plain

VERSION, INTERPRETED = triton.__version__, triton.knobs.runtime.interpret
PROGRAMS, LEAST_GROUPS = 512, 2  # wanted at once: about four a multiprocessor; columns of one that are worth a start


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut: rows and tokens of a program, its warps, loads in flight; groups at a time (one token)."""

    rows: int
    tokens: int
    warps: int
    stages: int = 3
    groups: int = 1
    splits: int = 1  # programs that share the columns of a tile; their sums are added in order


@dataclass(frozen=True, slots=True)
class Split:
    """Activations made ready for the products that share them. digits or parts [3, T, columns], the largest first."""

    x: Tensor      # [T, cols] as given, so that nothing else takes its place in memory
    parts: Tensor  # int8 digits (one token), bfloat16 parts, or x itself in bfloat16 [T, cols]
    units: Tensor  # [T, G] float32: what a whole number counts in; parts have none
    sums: Tensor   # [T, G * 16] float32: sums of 16 activations


@functools.cache
def tiling(rows: int, n_group: int, tokens: int) -> Tiling:
    """Choose by the size of the product alone, so that equal products have equal bits."""
    if tokens == 1:
        return Tiling(16, 1, 4, groups=2) if rows >= 8192 else Tiling(4, 1, 4, groups=2)
    how = Tiling(64, 16, 2) if tokens <= 16 else Tiling(128, 32, 4)
    programs = _pieces(rows, how.rows) * _pieces(tokens, how.tokens)
    return replace(how, splits=max(1, min(PROGRAMS // programs, n_group // LEAST_GROUPS)))


def is_one_token(quant: str, x: Tensor) -> bool:
    """Say whether the kernel for one token serves: it is for whole numbers, and float32 activations."""
    return len(x) == 1 and LAYOUTS[quant].numbers is not None and x.dtype == torch.float32


def split(x: Tensor, digits: bool) -> Split:
    """Make activations [T, cols] ready. digits: for the one-token kernel. bfloat16 ones are ready as they are."""
    dense = x.contiguous()
    if x.dtype == torch.bfloat16:
        return Split(x, dense, dense, dense)
    n_token, cols = x.shape
    n_group = _pieces(cols, GROUP)
    kind = torch.int8 if digits else torch.bfloat16
    parts = torch.empty((3, n_token, n_group * GROUP), dtype=kind, device=x.device)
    units = torch.empty((n_token, n_group), dtype=torch.float32, device=x.device)
    sums = torch.empty((n_token, n_group * 16), dtype=torch.float32, device=x.device)
    if n_token:
        _split[(n_group, n_token)](dense, parts, units, sums, cols, parts.stride(0), n_group, DIGITS=digits,
                                   INTERPRETED=INTERPRETED, num_warps=1, enable_fp_fusion=True)
    return Split(x, parts, units, sums)


def multiply_planes(planes: Planes, inputs: Split, how: Tiling | None = None) -> Tensor:
    """Return x W^T [T, rows] float32. bfloat16 activations are for weights rounded to bfloat16 as well."""
    n_token = len(inputs.x)
    how = how or tiling(planes.rows, planes.n_group, 1 if inputs.parts.dtype == torch.int8 else max(2, n_token))
    out = torch.empty((how.splits, n_token, planes.rows), dtype=torch.float32, device=inputs.x.device)
    grid = (_pieces(planes.rows, how.rows), _pieces(n_token, how.tokens), how.splits)
    layout = LAYOUTS[planes.quant]
    quants, high, scales, supers = stored = planes.quants, planes.high, planes.scales, planes.supers
    sizes = (planes.rows, inputs.parts.shape[-1], planes.n_group, n_token, inputs.parts.stride(0))
    options = {"INTERPRETED": INTERPRETED, "R": how.rows, "num_warps": how.warps,
               "num_stages": how.stages, "enable_fp_fusion": True}
    if inputs.parts.dtype == torch.int8:
        one_token[grid[:1]](quants.view(torch.int32), high.view(torch.int32), scales, supers,
                            inputs.parts.view(torch.int32), inputs.units, inputs.sums, out, planes.rows,
                            planes.n_group, L=layout.numbers, G=how.groups, STAGES=how.stages, **options)
    elif n_token:
        options |= {"N": how.tokens, "HALVES": inputs.x.dtype == torch.bfloat16}
        if layout.numbers is None:
            tile_plain[grid](quants, inputs.parts, out, *sizes, VALUES=layout.values, **options)
        else:
            tile[grid](*stored, inputs.parts, inputs.sums, out, *sizes, L=layout.numbers, **options)
    return out[0] if how.splits == 1 else out.sum(0)


def _pieces(size: int, of: int) -> int:
    return -(-size // of)  # triton.cdiv costs the host more than a launch's other arithmetic together


@triton.jit
def _split(x, parts, units, sums, cols, step, n_group, DIGITS: tl.constexpr, INTERPRETED: tl.constexpr):
    group, token = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    column = group * 256 + lane
    value = tl.load(x + token.to(tl.int64) * cols + column, mask=column < cols, other=0.0)
    at = parts + token.to(tl.int64) * n_group * 256 + column
    if DIGITS:
        nothing = value * 0.0  # NaN where the value is not finite
        most = tl.maximum(tl.max(tl.max(tl.abs(value), 1), 0), 1e-30)
        unit = most / 8300000.0 + tl.sum(tl.sum(nothing, 1), 0)  # three digits hold 127 * (2^16 + 2^8 + 1) = 8355711
        number = tl.where(nothing == 0.0, tl.floor(value * (8300000.0 / most) + 0.5), 0.0).to(tl.int32)
        third = ((number & 255) ^ 128) - 128
        second = ((((number - third) >> 8) & 255) ^ 128) - 128
        first = (number - third - second * 256) >> 16
        tl.store(at, first.to(tl.int8))
        tl.store(at + step, second.to(tl.int8))
        tl.store(at + 2 * step, third.to(tl.int8))
        tl.store(units + token * n_group + group, unit)
        total = tl.sum(number, 1).to(tl.float32) * unit
    else:
        first = to_bfloat16(value, INTERPRETED)
        rest = tl.where(tl.abs(value) < float("inf"), value - first.to(tl.float32), 0.0)
        second = to_bfloat16(rest, INTERPRETED)
        tl.store(at, first)
        tl.store(at + step, second)
        tl.store(at + 2 * step, to_bfloat16(rest - second.to(tl.float32), INTERPRETED))
        total = tl.sum(value, 1)
    tl.store(sums + (token * n_group + group) * 16 + tl.arange(0, 16), total)
