"""Latent attention (DeepSeek 2 and 3): keys and values come up from one narrow latent, RoPE turns a part beside it.

Shape letters: T tokens, S positions so far, D model, N heads, R the latent's width, H = O + P width of a query or key:
its plain channels and those that RoPE turns (one key for all heads), V width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.model.layers import Attention, Layer, Mla
from core.model.mixers.attention import attend_by, heat
from core.model.model import Cache, Model, Steps, Tap, linear


def mla(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return the projected mix [T, D], before the residual add."""
    a, i, name = layer.attention, layer.index, layer.prefix
    assert a is not None and a.mla is not None and a.rope is not None
    m, n_token = a.mla, len(h_TD)
    q_TQ = tap(i, "mla_q", (yield from _queries(model, layer, m, h_TD, tap)))
    kv_T = tap(i, "mla_kv_a", (yield from linear(model, name + "attn_kv_a_mqa", h_TD)))
    qkv_T = tap(i, "qkv", torch.cat((q_TQ, kv_T), -1))
    q_TQ, latent_TR, k_TP = qkv_T.split((q_TQ.shape[-1], m.kv_rank, m.rope), -1)  # type: ignore[no-untyped-call]
    latent_TR = tap(i, "mla_kv_a_norm", model.norm(name + "attn_kv_a_norm.weight", latent_TR))
    angles = cache.angles(model, a.rope, n_token)
    q_TNO, q_TNP = q_TQ.reshape(n_token, a.n_head, -1).split((m.k_width - m.rope, m.rope), -1)
    q_TNH = torch.cat((q_TNO, model.ops.rotate(q_TNP, *angles, a.rope.pairing)), -1)
    if a.temperature is not None:
        q_TNH = q_TNH * heat(a.temperature, cache.positions(n_token, q_TNH)).to(q_TNH)[:, None, None]
    q_TNH = tap(i, "q_rope", q_TNH.flatten(1)).view(q_TNH.shape)
    raised = yield from _raised(model, a, m, name, latent_TR)
    k_TNO, v_TNV = raised.split((m.k_width - m.rope, m.v_width), -1)  # type: ignore[no-untyped-call]
    k_TNP = model.ops.rotate(k_TP[:, None], *angles, a.rope.pairing).expand(-1, a.n_head, -1)
    k_TNH = torch.cat((k_TNO, k_TNP), -1)
    k_TNH = tap(i, "k_rope", k_TNH.flatten(1)).view(k_TNH.shape)
    k_SNH, v_SNV = cache.extend(i, k_TNH, v_TNV)
    mix_TQ = tap(i, "attn_mix", attend_by(a, q_TNH, k_SNH, v_SNV))
    return (yield from linear(model, name + "attn_output", mix_TQ))


def _queries(model: Model, layer: Layer, m: Mla, h_TD: Tensor, tap: Tap) -> Steps:
    """q_b(norm(q_a h)), or q h where queries have no latent of their own."""
    name = layer.prefix + "attn_q"
    if not m.q_rank:
        return (yield from linear(model, name, h_TD))
    latent = tap(layer.index, "mla_q_a", (yield from linear(model, name + "_a", h_TD)))
    return (yield from linear(model, name + "_b", model.norm(name + "_a_norm.weight", latent)))


def _raised(model: Model, a: Attention, m: Mla, name: str, latent_TR: Tensor) -> Steps:
    """Each head's plain key, then its value [T, N, O + V]: kv_b(latent), or by k_b, which lies turned, and v_b."""
    if m.joined:
        return (yield from linear(model, name + "attn_kv_b", latent_TR)).view(len(latent_TR), a.n_head, -1)
    k_NRO, v_NVR = model.tensor(name + "attn_k_b.weight"), model.tensor(name + "attn_v_b.weight")
    return torch.cat((torch.einsum("tr,nro->tno", latent_TR, k_NRO), torch.einsum("tr,nvr->tnv", latent_TR, v_NVR)), -1)
