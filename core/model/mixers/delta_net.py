"""The gated delta net (Qwen3-Next, Qwen 3.5): each value head keeps a matrix that says which value a key stands for.

Shape letters: T tokens, D model, C channels of q, k and v joined, K key heads, V value heads, G = V / K, N width of a
key, H width of a value. Source: Yang et al. 2024, token by token; engines may take chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from core.model.layers import Layer, Ssm
from core.model.mixers.short_conv import convolve
from core.model.model import Cache, Model, Steps, Tap, linear
from core.model.ops import silu, writable

LEAST_SQUARE = 1e-6  # added to the squares' sum of a query or key


def delta_net(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return ssm_out(norm(o) * silu(z)) [T, D], o being what the recurrence reads."""
    s, i, name = layer.ssm, layer.index, layer.prefix
    assert s is not None
    parts = ("ssm_ba",) if s.packed else ("ssm_beta", "ssm_alpha")
    products = []
    for part in ("attn_qkv", "attn_gate", *parts):
        products.append((yield from linear(model, name + part, h_TD)))
    in_T = tap(i, "ssm_in", torch.cat(products, -1))
    n_qkv = 2 * s.groups * s.state + s.inner
    qkv_TC, z_TE, ba_T = torch.split(in_T, [n_qkv, s.inner, 2 * s.rank], -1)
    beta_TV, alpha_TV = _beta_alpha(s, ba_T)
    past_PC, state_VNH = cache.states.get(i, (None, None))
    u_TC, past_PC = convolve(qkv_TC, model.tensor(name + "ssm_conv1d.weight"),
                             model.vector(name + "ssm_conv1d.bias"), past_PC)
    q_TVN, k_TVN, v_TVH = _heads(s, silu(u_TC))
    step_TV = softplus(alpha_TV + model.tensor(name + "ssm_dt.bias"))
    decay_TV = torch.exp(step_TV * model.tensor(name + "ssm_a").flatten())
    o_TVH, state_VNH = recur(q_TVN, k_TVN, v_TVH, beta_TV.sigmoid(), decay_TV, state_VNH)
    cache.states[i] = past_PC, state_VNH
    y_TVH = model.norm(name + "ssm_norm.weight", o_TVH) * silu(z_TE).view(o_TVH.shape)
    mix_TE = tap(i, "ssm_mix", y_TVH.flatten(1))
    return (yield from linear(model, name + "ssm_out", mix_TE))


def recur(
    q_TVN: Tensor, k_TVN: Tensor, v_TVH: Tensor, beta_TV: Tensor, decay_TV: Tensor, state_VNH: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return o [T, V, H] and the state after the last token.

    S <- S * decay;  S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(N)
    """
    _, n_head, width = q_TVN.shape
    q_TVN = q_TVN / math.sqrt(width)
    # one buffer, changed in place: fresh ones of this size cost more than the sums
    S = q_TVN.new_zeros(n_head, width, v_TVH.shape[2]) if state_VNH is None else state_VNH.clone()
    out = []
    for q_VN, k_VN, v_VH, beta_V, decay_V in zip(q_TVN, k_TVN, v_TVH, beta_TV, decay_TV, strict=True):
        S = writable(S).mul_(decay_V[:, None, None])
        error_V1H = (v_VH[:, None] - k_VN[:, None] @ S) * beta_V[:, None, None]
        S = writable(S).baddbmm_(k_VN[..., None], error_V1H)
        out.append(q_VN[:, None] @ S)
    return torch.stack(out)[:, :, 0], S


def _beta_alpha(s: Ssm, ba_T: Tensor) -> tuple[Tensor, Tensor]:
    """Each value head's beta and alpha [T, V]; ssm_ba has those of a key head's value heads together."""
    if not s.packed:
        beta_TV, alpha_TV = ba_T.chunk(2, -1)
        return beta_TV, alpha_TV
    beta_TKG, alpha_TKG = ba_T.view(len(ba_T), s.groups, -1).chunk(2, -1)
    return beta_TKG.flatten(1), alpha_TKG.flatten(1)


def _heads(s: Ssm, u_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of length 1, repeated for the value heads that read them, and v."""
    n_token, n_key, each = len(u_TC), s.groups * s.state, s.rank // s.groups
    q_TC, k_TC, v_TC = torch.split(u_TC, [n_key, n_key, s.inner], -1)

    def unit(x_TC: Tensor) -> Tensor:
        x_TKN = x_TC.reshape(n_token, s.groups, s.state)
        x_TKN = x_TKN * torch.rsqrt(x_TKN.square().sum(-1, keepdim=True) + LEAST_SQUARE)
        return x_TKN.repeat(1, each, 1) if s.tiled else x_TKN.repeat_interleave(each, 1)

    return unit(q_TC), unit(k_TC), v_TC.reshape(n_token, s.rank, -1)
