"""The small operations of a layer on a GPU, one launch each, as model/ops.py defines them; rows decoded from planes.

They serve float32 without gradients; model/ops.py is their definition and what tests hold them against.
Shape letters: T tokens, S positions so far, D model, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.kernels.gpu.blocks import block_scale, first_column, first_high_byte, group_scales, numbers
from core.kernels.gpu.planes import LAYOUTS, Planes

FEW_TOKENS = 64  # attention above it is torch's
POSITIONS = 64  # taken at a time by attention


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight, over the last axis, as a contiguous tensor."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    out = torch.empty_like(rows)
    if len(rows):
        _rms_norm[(len(rows),)](rows, weight, out, rows.stride(0), width, eps, W=triton.next_power_of_2(width),
                                num_warps=8 if width > 2048 else 4, enable_fp_fusion=True)
    return out.view(x.shape)


def rotate(x_TNH: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """Turn each pair of the first 2 * cos.shape[1] channels of every head by its angle; the rest pass."""
    n_token, n_head, width = x_TNH.shape
    assert x_TNH.stride(-1) == 1, "a head's channels lie side by side"
    out = torch.empty((n_token, n_head, width), dtype=x_TNH.dtype, device=x_TNH.device)
    if n_token:
        _rotate[(n_token, n_head)](
            x_TNH, cos, sin, out, x_TNH.stride(0), x_TNH.stride(1), width, cos.shape[1],
            ADJACENT=pairing != "halves", W=triton.next_power_of_2(width), num_warps=1,
            enable_fp_fusion=True)
    return out


def attend_few(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, position: Tensor | None = None) -> Tensor:
    """Return softmax(q k / sqrt(H)) v [T, N * H]; causal, the T queries being the last of the S positions.

    position: the first query's, on the device; keys beyond the queries are room that is not yet used.
    """
    n_token, n_head, width = q_TNH.shape
    assert q_TNH.is_contiguous() and k_SKH.stride(2) == 1 and v_SKH.stride(2) == 1
    out = torch.empty((n_token, n_head * width), dtype=q_TNH.dtype, device=q_TNH.device)
    if n_token:
        _attend[(n_token, n_head)](
            q_TNH, k_SKH, v_SKH, q_TNH if position is None else position, out, k_SKH.shape[0] - n_token,
            k_SKH.stride(0), k_SKH.stride(1), v_SKH.stride(0), v_SKH.stride(1), n_head // k_SKH.shape[1], width,
            width**-0.5, FIXED=position is None, S=POSITIONS, W=triton.next_power_of_2(width), num_warps=4,
            enable_fp_fusion=True)
    return out


def decode_planes(planes: Planes, ids: Tensor) -> Tensor:
    """Decode the rows ids [T] (int64, on the device) to float32 [T, cols], bit for bit as quant/dequantize.py."""
    layout = LAYOUTS[planes.quant].numbers
    if layout is None:
        return planes.quants.flatten(1)[ids, :planes.cols].float()
    out = torch.empty((len(ids), planes.cols), dtype=torch.float32, device=planes.quants.device)
    if len(ids):
        _decode[(len(ids), planes.n_group)](planes.quants, planes.high, planes.scales, planes.supers, ids, out,
                                            planes.cols, planes.n_group, L=layout, num_warps=1,
                                            enable_fp_fusion=True)
    return out


@triton.jit
def _rms_norm(x, weight, out, stride, width, eps, W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, W)
    value = tl.load(x + row * stride + at, mask=at < width, other=0.0)
    size = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / width + eps)
    tl.store(out + row * width + at, value * size * tl.load(weight + at, mask=at < width, other=0.0), mask=at < width)


@triton.jit
def _rotate(x, cos, sin, out, token_step, head_step, width, pairs, ADJACENT: tl.constexpr, W: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, W)
    if ADJACENT:
        pair, other, is_first = at // 2, at ^ 1, at % 2 == 0
    else:
        is_first = at < pairs
        pair = tl.where(is_first, at, at - pairs)
        other = tl.where(is_first, at + pairs, at - pairs)
    turns = at < 2 * pairs
    row = x + token * token_step + head * head_step
    value = tl.load(row + at, mask=at < width, other=0.0)
    mate = tl.load(row + other, mask=turns, other=0.0)
    c = tl.load(cos + token * pairs + pair, mask=turns, other=1.0)
    s = tl.load(sin + token * pairs + pair, mask=turns, other=0.0)
    turned = tl.where(is_first, value * c - mate * s, value * c + mate * s)
    at_out = out + (token * tl.num_programs(1) + head) * width + at
    tl.store(at_out, tl.where(turns, turned, value), mask=at < width)


@triton.jit
def _attend(
    q, k, v, position, out, n_past, k_step, k_head, v_step, v_head, share, width, scale,
    FIXED: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    if not FIXED:
        n_past = tl.load(position).to(tl.int32)
    last = n_past + token  # the query's own position
    at, each = tl.arange(0, W), tl.arange(0, S)
    row = (token.to(tl.int64) * tl.num_programs(1) + head) * width
    query = tl.load(q + row + at, mask=at < width, other=0.0) * scale
    keys, values = k + head // share * k_head + at, v + head // share * v_head + at
    most = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mix = tl.zeros((W,), tl.float32)
    for start in range(0, last + 1, S):
        where = (start + each).to(tl.int64)[:, None]
        here = (start + each <= last)[:, None] & (at < width)[None, :]
        key = tl.load(keys[None, :] + where * k_step, mask=here, other=0.0)
        score = tl.where(start + each <= last, tl.sum(key * query[None, :], 1), float("-inf"))
        peak = tl.maximum(most, tl.max(score, 0))
        share_S = tl.exp(score - peak)
        fade = tl.exp(most - peak)
        value = tl.load(values[None, :] + where * v_step, mask=here, other=0.0)
        mix = mix * fade + tl.sum(value * share_S[:, None], 0)
        total = total * fade + tl.sum(share_S, 0)
        most = peak
    tl.store(out + row + at, mix / total, mask=at < width)


@triton.jit
def _decode(quants, high, scales, supers, ids, out, cols, n_group, L: tl.constexpr):
    SLOTS: tl.constexpr = L.slots
    CHUNKS: tl.constexpr = 16 // SLOTS
    group = tl.load(ids + tl.program_id(0)) * n_group + tl.program_id(1)
    chunk = tl.arange(0, CHUNKS)[:, None]
    lane = tl.arange(0, 16)[None, :]
    inside = chunk >= 0
    w = tl.load(quants + group * (CHUNKS * 16) + chunk * 16 + lane).to(tl.int32)
    h = w
    if L.high:
        h = tl.load(high + group * (32 * L.high) + first_high_byte(L, chunk) + lane).to(tl.int32)
    d, least = group_scales(L, supers, group + chunk * 0, inside)
    for slot in tl.static_range(SLOTS):
        column = first_column(L, chunk, slot)
        number = numbers(L, slot, w, h, chunk)
        s, m = block_scale(L, scales, group, column, d, least, inside)
        value = number.to(tl.float32) * s
        if not L.signed:
            value -= m
        at = tl.program_id(1) * 256 + column + lane
        tl.store(out + tl.program_id(0).to(tl.int64) * cols + at, value, mask=at < cols)
