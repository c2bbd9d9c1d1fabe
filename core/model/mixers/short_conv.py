"""A gated short convolution (LFM2), and the causal convolution of few positions that every recurrent mixer begins with.

Shape letters: T tokens, D model, C channels, K positions that the convolution sees, P = K - 1 of them from before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.model.layers import Layer
from core.model.model import Cache, Model, Steps, Tap, linear


def short_conv(model: Model, layer: Layer, h_TD: Tensor, cache: Cache, tap: Tap) -> Steps:
    """Return out_proj(c * conv(b * x)) [T, D], b, c and x being the parts of in_proj(h)."""
    i, name = layer.index, layer.prefix + "shortconv."
    in_T3D = tap(i, "ssm_in", (yield from linear(model, name + "in_proj", h_TD)))
    b_TD, c_TD, x_TD = in_T3D.chunk(3, -1)
    y_TD, cache.states[i] = convolve(b_TD * x_TD, model.tensor(name + "conv.weight"), None, cache.states.get(i))
    mix_TD = tap(i, "ssm_mix", c_TD * y_TD)
    return (yield from linear(model, name + "out_proj", mix_TD))


def convolve(x_TC: Tensor, weight: Tensor, bias_C: Tensor | None, past_PC: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return y[t, c] = sum over k of x[t - P + k, c] w[c, k] (+ bias), and the last P rows of x, for the next tokens.

    weight: [C, K], or with dimensions of 1. past_PC: those rows of the tokens before; None: zeros, nothing was before.
    """
    n_token, n_channel = x_TC.shape
    w_CK = weight.reshape(n_channel, -1)
    past_PC = x_TC.new_zeros(w_CK.shape[1] - 1, n_channel) if past_PC is None else past_PC
    all_SC = torch.cat((past_PC, x_TC))
    y_TC = all_SC[:n_token] * w_CK[:, 0]
    for k in range(1, w_CK.shape[1]):
        y_TC = y_TC + all_SC[k : k + n_token] * w_CK[:, k]
    return y_TC if bias_C is None else y_TC + bias_C, all_SC[n_token:].clone()
