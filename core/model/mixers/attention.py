"""Grouped-query attention, with the windows, caps, sinks, gates and norms that a family may add.

Shape letters: T tokens, S positions so far, D model, Q joined q k v, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.model.layers import Attention, Layer, Temperature
from core.model.model import Cache, Model, Steps, Tap, linear, linears
from core.model.ops import rms_scale

QUERIES = 512  # taken at a time: their scores are kept whole


def attention(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return the projected mix [T, D], before the residual add."""
    a, i, name = layer.attention, layer.index, layer.prefix
    assert a is not None
    qkv_TQ = tap(i, "qkv", (yield from _products(model, a, name, h_TD)))
    if a.clamp:
        qkv_TQ = qkv_TQ.clamp(-a.clamp, a.clamp)
    q_TNH, k_TKH, v_TKH, gate_TQ = _heads(a, qkv_TQ)
    if a.v_norm and a.own_k:
        v_TKH = rms_scale(v_TKH, model.arch.eps)
    q_TNH = tap(i, "q_rope", _turned(model, a, a.q_norm, name + "attn_q_norm.weight", q_TNH, cache).flatten(1)
                ).view(q_TNH.shape)
    if a.own_k:
        k_TKH = _turned(model, a, a.k_norm, name + "attn_k_norm.weight", k_TKH, cache, is_query=False)
        k_TKH = tap(i, "k_rope", k_TKH.flatten(1)).view(k_TKH.shape)
        if not model.kv.is_exact:
            k_TKH, v_TKH = model.kv.key(k_TKH), model.kv.value(v_TKH)
        k_SKH, v_SKH = cache.extend(i, k_TKH, v_TKH)
    else:
        k_SKH, v_SKH = _borrowed(layer, a, cache, len(h_TD), tap)
    if not model.kv.is_exact:
        q_TNH = model.kv.query(q_TNH)
    if a.is_plain:
        mix_TQ = model.ops.attend(q_TNH, k_SKH, v_SKH, cache.position)
    else:
        sinks_N = model.tensor(name + "attn_sinks.weight") if a.sinks else None
        mix_TQ = attend_by(a, q_TNH, k_SKH, v_SKH, sinks_N)
    if a.gate == "own":
        gate_TQ = yield from linear(model, name + "attn_gate", h_TD)
    if gate_TQ is not None:
        mix_TQ = mix_TQ * torch.sigmoid(gate_TQ)
    mix_TQ = tap(i, "attn_mix", mix_TQ)
    return (yield from linear(model, name + "attn_output", mix_TQ))


def attend_by(
    a: Attention, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, sinks_N: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Return softmax(cap(q k * scale) + bias, and the sink beside them) v [T, N * H], the T queries being the last.

    causal: False only where a wrong attention is made on purpose.
    """
    n_token, n_past = len(q_TNH), len(k_SKH) - len(q_TNH)
    group = q_TNH.shape[1] // k_SKH.shape[1]
    k_NSH, v_NSH = (t.transpose(0, 1).repeat_interleave(group, 0) for t in (k_SKH, v_SKH))
    scale = 1 / math.sqrt(a.width) if a.scale is None else a.scale
    s_S = torch.arange(len(k_SKH), device=q_TNH.device)
    parts = []
    for start in range(0, n_token, QUERIES):
        q_NTH = q_TNH[start : start + QUERIES].transpose(0, 1)
        behind_TS = s_S[n_past + start : n_past + start + q_NTH.shape[1], None] - s_S
        scores_NTS = q_NTH @ k_NSH.transpose(1, 2) * scale
        if a.cap:
            scores_NTS = a.cap * torch.tanh(scores_NTS / a.cap)
        if a.alibi:
            scores_NTS = scores_NTS - slopes(a.n_head).to(scores_NTS)[:, None, None] * behind_TS
        seen_TS = behind_TS >= 0 if causal else torch.ones_like(behind_TS, dtype=torch.bool)
        if a.window and a.chunked:
            seen_TS = seen_TS & (s_S // a.window == ((behind_TS + s_S) // a.window))
        elif a.window:
            seen_TS = seen_TS & (behind_TS < a.window)
        scores_NTS = scores_NTS.masked_fill(~seen_TS, -math.inf)
        if sinks_N is not None:
            sink_NT1 = sinks_N[:, None, None].expand(-1, scores_NTS.shape[1], 1)
            scores_NTS = torch.cat((scores_NTS, sink_NT1), -1)
        share_NTS = scores_NTS.softmax(-1)[..., : len(k_SKH)]
        parts.append((share_NTS @ v_NSH).transpose(0, 1).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def slopes(n_head: int) -> Tensor:
    """ALiBi's slope of each head [N]: powers of 2^(-8/n) for a power of two, those between them for the rest."""
    n = 2 ** int(math.log2(n_head))
    return torch.tensor([2 ** (-8 / n * (j + 1)) if j < n else 2 ** (-4 / n * (2 * (j - n) + 1))
                         for j in range(n_head)], dtype=torch.float64)


def _products(model: Model, a: Attention, name: str, h_TD: Tensor) -> Steps:
    """The products of q, k and v, joined: those that the layer has."""
    if a.joined:
        return (yield from linear(model, name + "attn_qkv", h_TD))
    parts = ("attn_q", *(("attn_k",) * a.own_k), *(("attn_v",) * a.own_v))
    return (yield from linears(model, [name + part for part in parts], h_TD))


def _heads(a: Attention, qkv_TQ: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys and values by head, and the queries' output gate [T, N * H] where they hold one."""
    parts = zip(qkv_TQ.split_with_sizes(a.widths, -1), (a.n_head, a.n_kv, a.n_kv), a.widths, strict=True)
    q_TNH, k_TKH, v_TKH = (part_TQ.reshape(len(qkv_TQ), n, -1 if width else 0) for part_TQ, n, width in parts)
    if not a.own_v:
        v_TKH = k_TKH
    if a.gate != "query":
        return q_TNH, k_TKH, v_TKH, None
    q_TNH, gate_TNH = q_TNH.chunk(2, -1)
    return q_TNH, k_TKH, v_TKH, gate_TNH.flatten(1)


def _turned(
    model: Model, a: Attention, norm: str, name: str, x_TNH: Tensor, cache: Cache, is_query: bool = True
) -> Tensor:
    """Norm and turn queries or keys, in the family's order; queries by their temperature too."""
    if norm and not a.norm_after_rope:
        x_TNH = _normed(model, norm, name, x_TNH)
    if a.rope is not None:
        x_TNH = model.ops.rotate(x_TNH, *cache.angles(model, a.rope, len(x_TNH)), a.rope.pairing)
    if a.l2:
        x_TNH = rms_scale(x_TNH, model.arch.eps)
    if norm and a.norm_after_rope:
        x_TNH = _normed(model, norm, name, x_TNH)
    if a.temperature is not None and is_query:
        return x_TNH * heat(a.temperature, cache.positions(len(x_TNH), x_TNH)).to(x_TNH)[:, None, None]
    return x_TNH


def heat(t: Temperature, position_T: Tensor) -> Tensor:
    """Return 1 + scale * ln(1 + floor((p + offset) / length)) of each position, in float64."""
    return torch.log(torch.floor((position_T.double() + t.offset) / t.length) + 1) * t.scale + 1


def _normed(model: Model, kind: str, name: str, x_TNH: Tensor) -> Tensor:
    if kind == "whole":
        return model.norm(name, x_TNH.flatten(1)).view(x_TNH.shape)
    return model.norm(name, x_TNH)


def _borrowed(layer: Layer, a: Attention, cache: Cache, n_token: int, tap: Tap) -> tuple[Tensor, Tensor]:
    """Another layer's keys and values; the new tokens' keys pass this layer's tap."""
    assert a.kv_from is not None
    k_SKH, v_SKH = cache.keys[a.kv_from], cache.values[a.kv_from]
    new_TKH = k_SKH[len(k_SKH) - n_token :]
    tapped = tap(layer.index, "k_rope", new_TKH.flatten(1)).view(new_TKH.shape)
    return torch.cat((k_SKH[: len(k_SKH) - n_token], tapped)), v_SKH
