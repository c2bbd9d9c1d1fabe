"""The one forward of a decoder-only transformer, with the tap always in it. It holds no weights and drives nothing.

It is a generator: it yields each product it needs (Product) and is sent the result, so that several runs of it (traced,
untraced, perturbed, float64) run in lockstep and every weight is decoded once for all of them (lockstep.py). What a
layer is made of stands in its Layer; mixers/ and experts.py hold the parts.
Shape letters: T tokens, D model, F feed-forward, V vocabulary, L layers, P width of a layer's own input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.model.experts import experts
from core.model.layers import RECURRENT, FeedForward, Layer
from core.model.mixers import MIXERS
from core.model.model import Cache, Model, Resume, Steps, Tap, linear, linears
from core.model.ops import activate, gated


def forward(
    model: Model, tokens: Sequence[int] | Tensor, tap: Tap, cache: Cache | None = None, resume: Resume | None = None
) -> Steps:
    """Run the tokens through the whole model; returns the logits [1, V] of the last one.

    resume: go on from there, of a run without per-layer inputs or shared keys (Arch.can_resume).
    """
    arch = model.arch
    cache = Cache() if cache is None else cache
    cache.begin(len(tokens))
    x_TD = tap(None, "embedding", embed(model, tokens, cache)) if resume is None else resume.x
    inputs_TLP = (yield from per_layer_inputs(model, tokens, x_TD)) if arch.per_layer else None
    for layer in arch.layers[resume.layer if resume else 0:]:
        x_TD = yield from block(model, layer, x_TD, tap, cache)
        if inputs_TLP is not None:
            x_TD = yield from add_own_input(model, layer, x_TD, inputs_TLP[:, layer.index], tap)
        if layer.scaled:
            x_TD = x_TD * model.tensor(layer.prefix + "layer_output_scale.weight")
        x_TD = tap(layer.index, "output", x_TD)
    x_TD = tap(None, "final_norm", model.norm(arch.out_norm, x_TD))
    cache.end(len(tokens))
    logits_TV = yield from linear(model, model.head, x_TD[-1:])
    if arch.logit_scale != 1:
        logits_TV = logits_TV * arch.logit_scale
    if arch.logit_cap:
        logits_TV = arch.logit_cap * torch.tanh(logits_TV / arch.logit_cap)
    return tap(None, "logits", logits_TV)


def embed(model: Model, tokens: Sequence[int] | Tensor, cache: Cache) -> Tensor:
    """Return the embedding [T, D] of the tokens: scaled, normed, with learned positions, as the family has it."""
    arch, x_TD = model.arch, model.rows("token_embd.weight", tokens)
    if arch.embed_scale != 1:
        x_TD = x_TD * arch.embed_scale
    if "token_embd_norm.weight" in model.file.weights and arch.out_norm != "token_embd_norm.weight":
        x_TD = model.norm("token_embd_norm.weight", x_TD)
    if "position_embd.weight" in model.file.weights:
        x_TD = x_TD + model.rows("position_embd.weight", list(range(cache.n_past, cache.n_past + len(tokens))))
    return x_TD


def block(model: Model, layer: Layer, x_TD: Tensor, tap: Tap, cache: Cache) -> Steps:
    """Run one layer on the residual stream x; returns the residual stream after it, before the layer's output."""
    i, h_TD, before_TD = layer.index, x_TD, x_TD
    if layer.attn_norm is not None:
        h_TD = tap(i, "attn_norm", model.norm(layer.attn_norm, x_TD))
    for mixer in layer.mixers:
        stage = "ssm_out" if mixer in RECURRENT and len(layer.mixers) > 1 else "attn_out"
        out_TD = tap(i, stage, (yield from MIXERS[mixer](model, layer, h_TD, cache, tap)))
        if layer.attn_post is not None:
            out_TD = tap(i, "attn_post_norm", model.norm(layer.attn_post, out_TD))
        x_TD = x_TD + (out_TD if layer.residual == 1 else out_TD * layer.residual)
    if layer.ffn is None:
        return x_TD
    if layer.parallel:
        f_TD = before_TD if layer.ffn_norm is not None else h_TD
    else:
        f_TD = x_TD = tap(i, "attn_resid", x_TD) if layer.mixers else x_TD
    source_TD = f_TD
    if layer.ffn_norm is not None:
        f_TD = tap(i, "ffn_norm", model.norm(layer.ffn_norm, f_TD))
    if layer.ffn.experts is None:
        out_TD = yield from feed_forward(model, layer, layer.ffn, f_TD, tap)
    else:
        out_TD = yield from experts(model, layer, f_TD, source_TD, tap, feed_forward)
    out_TD = tap(i, "ffn_out", out_TD)
    if layer.ffn_post is not None:
        out_TD = tap(i, "ffn_post_norm", model.norm(layer.ffn_post, out_TD))
    return x_TD + (out_TD if layer.residual == 1 else out_TD * layer.residual)


def feed_forward(
    model: Model, layer: Layer, f: FeedForward, x_TD: Tensor, tap: Tap, stage: str = "ffn_", tensor: str = ""
) -> Steps:
    """down(act(gate x) * up x), or down(act(up x)) without a gate; stage and tensor: around the names of its parts."""
    i, name = layer.index, layer.prefix + "ffn_"
    if f.gate == "split" and len(x_TD) == 1:  # of one token the halves of a joined product are whole tensors
        both_TF = yield from linears(model, [f"{name}gate{tensor}", f"{name}up{tensor}"], x_TD)
        gate_TF, up_TF = both_TF.chunk(2, -1)
        gate_TF, up_TF = tap(i, stage + "gate", gate_TF), tap(i, stage + "up", up_TF)
    elif f.gate == "split":
        gate_TF = tap(i, stage + "gate", (yield from linear(model, f"{name}gate{tensor}", x_TD)))
        up_TF = tap(i, stage + "up", (yield from linear(model, f"{name}up{tensor}", x_TD)))
    else:
        up_TF = yield from linear(model, f"{name}up{tensor}", x_TD)
        if f.gate == "joined":
            gate_TF, up_TF = up_TF.chunk(2, -1)
            gate_TF = tap(i, stage + "gate", gate_TF)
        up_TF = tap(i, stage + "up", up_TF)
    if f.gate == "none":
        h_TF = tap(i, stage + "silu", activate(f, up_TF))
    else:
        silu_TF = tap(i, stage + "silu", activate(f, gate_TF))
        h_TF = tap(i, stage + "swigl", gated(f, silu_TF, up_TF))
    return (yield from linear(model, f"{name}down{tensor}", h_TF))


# --- per-layer inputs (Gemma 4) --------------------------------------------------------------------------------------


def per_layer_inputs(model: Model, tokens: Sequence[int] | Tensor, x_TD: Tensor) -> Steps:
    """Return (row of the tokens * sqrt(P) + norm(projection of x / sqrt(D))) / sqrt(2) for every layer [T, L, P]."""
    n, shape = model.arch.per_layer, (len(tokens), model.arch.n_layer, model.arch.per_layer)
    own_TLP = (model.rows("per_layer_token_embd.weight", tokens) * math.sqrt(n)).view(shape)
    projected = yield from linear(model, "per_layer_model_proj", x_TD)
    projected_TLP = model.norm("per_layer_proj_norm.weight", (projected / math.sqrt(model.arch.d_model)).view(shape))
    return (own_TLP + projected_TLP) / math.sqrt(2)


def add_own_input(model: Model, layer: Layer, x_TD: Tensor, input_TP: Tensor, tap: Tap) -> Steps:
    """x + norm(proj(act(gate x) * the layer's own input))."""
    i, name = layer.index, layer.prefix
    assert layer.ffn is not None
    gate_TP = tap(i, "ple_gate", (yield from linear(model, name + "inp_gate", x_TD)))
    mix_TP = tap(i, "ple_mix", activate(layer.ffn, gate_TP) * input_TP)
    out_TD = yield from linear(model, name + "proj", mix_TP)
    return x_TD + tap(i, "ple_out", model.norm(name + "post_norm.weight", out_TD))
