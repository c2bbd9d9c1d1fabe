"""Mamba-1 and Mamba-2: a state of S numbers a channel that decays, takes what comes in, and is read, token by token.

Shape letters: T tokens, D model, E inner channels, S state, R time step rank (Mamba-1), N heads of H channels and G
groups of heads that share b and c (Mamba-2). Sources: Gu and Dao 2023; Dao and Gu 2024; engines may take chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from core.model.layers import Layer, Ssm
from core.model.mixers.short_conv import convolve
from core.model.model import Cache, Model, Steps, Tap, linear
from core.model.ops import rms_scale, silu, writable


def mamba(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return ssm_out(y * silu(z)) [T, D]: each channel has its own decay, step dt and skip d."""
    s, i, name = layer.ssm, layer.index, layer.prefix
    assert s is not None
    in_T = tap(i, "ssm_in", (yield from linear(model, name + "ssm_in", h_TD)))
    x_TE, z_TE = in_T.chunk(2, -1)
    past_PE, state = cache.states.get(i, (None, None))
    x_TE, past_PE = _convolved(model, name, x_TE, past_PE)
    dt_TR, b_TS, c_TS = torch.split(
        (yield from linear(model, name + "ssm_x", x_TE)), [s.rank, s.state, s.state], -1)
    dt_TR, b_TS, c_TS = (_normed(model, s, f"{name}ssm_{part}_norm.weight", value)
                         for part, value in (("dt", dt_TR), ("b", b_TS), ("c", c_TS)))
    dt_TE = softplus((yield from linear(model, name + "ssm_dt", dt_TR)))
    a_ES, d_E = model.tensor(name + "ssm_a").view(s.inner, s.state), model.tensor(name + "ssm_d").flatten()
    y_TE1, state = recur(x_TE[..., None], dt_TE, a_ES, b_TS[:, None], c_TS[:, None], state)
    cache.states[i] = past_PE, state
    mix_TE = tap(i, "ssm_mix", (y_TE1[..., 0] + d_E * x_TE) * silu(z_TE))
    return (yield from linear(model, name + "ssm_out", mix_TE))


def mamba2(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return ssm_out(norm by group(y * silu(z))) [T, D]: each head has one decay, step dt and skip d."""
    s, i, name = layer.ssm, layer.index, layer.prefix
    assert s is not None
    n_token, keys = len(h_TD), s.groups * s.state
    in_T = tap(i, "ssm_in", (yield from linear(model, name + "ssm_in", h_TD)))
    z_TE, xbc_T, dt_TN = torch.split(in_T, [s.inner, s.inner + 2 * keys, s.rank], -1)
    past_P, state_NHS = cache.states.get(i, (None, None))
    xbc_T, past_P = _convolved(model, name, xbc_T, past_P)
    x_TE, b_T, c_T = torch.split(xbc_T, [s.inner, keys, keys], -1)
    x_TNH = x_TE.reshape(n_token, s.rank, -1)
    b_TNS, c_TNS = (t.reshape(n_token, s.groups, s.state).repeat_interleave(s.rank // s.groups, 1) for t in (b_T, c_T))
    dt_TN = softplus(dt_TN + model.tensor(name + "ssm_dt.bias"))
    a_N1, d_N1 = model.tensor(name + "ssm_a").view(-1, 1), model.tensor(name + "ssm_d").view(-1, 1)
    y_TNH, state_NHS = recur(x_TNH, dt_TN, a_N1, b_TNS, c_TNS, state_NHS)
    cache.states[i] = past_P, state_NHS
    y_TE = (y_TNH + d_N1 * x_TNH).flatten(1) * silu(z_TE)
    norm = model.vector(name + "ssm_norm.weight")
    if norm is not None:
        y_TE = rms_scale(y_TE.view(n_token, s.groups, -1), model.arch.eps).flatten(1) * norm.flatten()
    mix_TE = tap(i, "ssm_mix", y_TE)
    return (yield from linear(model, name + "ssm_out", mix_TE))


def recur(
    x_TNH: Tensor, dt_TN: Tensor, a_NS: Tensor, b_TNS: Tensor, c_TNS: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y [T, N, H] and the state after the last token; Mamba-1's channels are heads of one channel.

    S <- S e^(dt a) + dt x b^T;  y = S c.  a: [N, S], or [N, 1] for all S. b, c: of each head, or [T, 1, S] for all.
    state: [N, H, S]; None: zeros.
    """
    n_head, width = x_TNH.shape[1:]
    # one buffer, changed in place: fresh ones of this size cost more than the sums
    S = x_TNH.new_zeros(n_head, width, b_TNS.shape[-1]) if state is None else state.clone()
    out = []
    for x_NH, dt_N, b_NS, c_NS in zip(x_TNH, dt_TN, b_TNS, c_TNS, strict=True):
        S = writable(S).mul_(torch.exp(dt_N[:, None] * a_NS)[:, None])
        S = writable(S).addcmul_((dt_N[:, None] * x_NH)[..., None], b_NS[:, None])
        out.append((S @ c_NS[..., None])[..., 0])
    return torch.stack(out), S


def _convolved(model: Model, name: str, x_TC: Tensor, past_PC: Tensor | None) -> tuple[Tensor, Tensor]:
    weight, bias_C = model.tensor(name + "ssm_conv1d.weight"), model.vector(name + "ssm_conv1d.bias")
    y_TC, past_PC = convolve(x_TC, weight, bias_C, past_PC)
    return silu(y_TC), past_PC


def _normed(model: Model, s: Ssm, name: str, x: Tensor) -> Tensor:
    """Jamba norms dt, b and c; Falcon Mamba without weights."""
    if name in model.file.weights:
        return model.norm(name, x)
    return rms_scale(x, model.arch.eps) if s.normed else x
