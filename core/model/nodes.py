"""The stages of a layer by its kind: what each reads, its width, and the tensors behind it. Nothing is computed here.

A stage that a layer lacks is absent. Order is that of stages.STAGES.
"""

from __future__ import annotations

from core.model.layers import (
    DELTA_NET,
    MAMBA,
    MLA,
    RECURRENT,
    SHORT_CONV,
    Attention,
    Experts,
    FeedForward,
    Layer,
    Node,
    Ssm,
)
from core.model.stages import PREVIOUS

Nodes = dict[str, Node]
_UP = ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")


def nodes_of(layer: Layer, d_model: int) -> Nodes:
    """Return the nodes of a layer, all its other fields being set."""
    found = Nodes()
    h = PREVIOUS
    if layer.attn_norm is not None:
        found["attn_norm"], h = Node("norm", d_model, (PREVIOUS,), (_short(layer, layer.attn_norm),)), "attn_norm"
    found |= _mixers(layer, h, d_model)
    out: tuple[str, ...] = tuple(name for name in ("attn_out", "ssm_out") if name in found)
    if layer.attn_post is not None:
        found["attn_post_norm"] = Node("norm", d_model, out, (_short(layer, layer.attn_post),))
        out = ("attn_post_norm",)
    stream: tuple[str, ...] = (PREVIOUS, *out)
    if layer.ffn is not None and layer.mixers and not layer.parallel:
        found["attn_resid"], stream = Node("residual", d_model, stream), ("attn_resid",)
    if layer.ffn is not None:
        found |= _feed_forward(layer, layer.ffn, h, d_model)
        stream = (*stream, "ffn_out" if layer.ffn_post is None else "ffn_post_norm")
    if layer.per_layer:  # what its gate reads is no stage
        found["ple_gate"] = Node("linear", layer.per_layer, stream, ("inp_gate",))
        found["ple_mix"] = Node("mixture", layer.per_layer, ("ple_gate",))
        found["ple_out"] = Node("mixture", d_model, ("ple_mix",), ("proj", "post_norm"))
        stream = (*stream, "ple_out")
    found["output"] = Node("residual", d_model, stream, ("layer_output_scale",) if layer.scaled else ())
    return found


def _mixers(layer: Layer, h: str, d_model: int) -> Nodes:
    found = Nodes()
    for mixer in layer.mixers:
        if mixer in RECURRENT:
            assert layer.ssm is not None
            found |= _recurrent(mixer, layer.ssm, h, d_model, "attn_out" if len(layer.mixers) == 1 else "ssm_out")
        else:
            assert layer.attention is not None
            found |= _latent(layer.attention, h) if mixer == MLA else _attention(layer.attention, h)
            found["attn_out"] = Node("linear", d_model, ("attn_mix",), ("attn_output",))
    return found


def _attention(a: Attention, h: str) -> Nodes:
    q, kv = a.n_head * a.width, a.n_kv * a.width
    parts = ("attn_qkv",) if a.joined else ("attn_q", *(["attn_k"] * a.own_k), *(["attn_v"] * a.own_v))
    keys = ("qkv",) if a.own_k else ()  # else another layer's
    gate = (h,) if a.gate == "own" else ()
    return {
        "qkv": Node("linear", sum(a.widths), (h,), parts),
        "q_rope": Node("rope", q, ("qkv",), ("attn_q_norm",) * bool(a.q_norm)),
        "k_rope": Node("rope", kv, keys, ("attn_k_norm",) * bool(a.k_norm)),
        "attn_mix": Node("attention", q, ("q_rope", "k_rope", "qkv", *gate),
                         (*("attn_sinks",) * a.sinks, *("attn_gate",) * bool(gate))),
    }


def _latent(a: Attention, h: str) -> Nodes:
    m = a.mla
    assert m is not None
    q, kv = a.n_head * m.k_width, m.kv_rank + m.rope
    found = {"mla_q_a": Node("linear", m.q_rank, (h,), ("attn_q_a",))} if m.q_rank else {}
    up = ("attn_kv_b",) if m.joined else ("attn_k_b", "attn_v_b")
    return found | {
        "mla_q": Node("mixture" if m.q_rank else "linear", q, ("mla_q_a",) if m.q_rank else (h,),
                      ("attn_q_a_norm", "attn_q_b") if m.q_rank else ("attn_q",)),
        "mla_kv_a": Node("linear", kv, (h,), ("attn_kv_a_mqa",)),
        "qkv": Node("mixture", q + kv, ("mla_q", "mla_kv_a")),
        "mla_kv_a_norm": Node("latent", m.kv_rank, ("qkv",), ("attn_kv_a_norm",)),
        "q_rope": Node("rope", q, ("qkv",)),
        "k_rope": Node("rope", q, ("mla_kv_a_norm", "qkv"), up[:1]),
        "attn_mix": Node("attention", a.n_head * m.v_width, ("q_rope", "k_rope", "mla_kv_a_norm"), up[-1:]),
    }


def _recurrent(mixer: str, s: Ssm, h: str, d_model: int, out: str) -> Nodes:
    keys = 2 * s.groups * s.state
    width, into, inner, last = {
        DELTA_NET: (keys + 2 * s.inner + 2 * s.rank, ("attn_qkv", "attn_gate", "ssm_ba", "ssm_beta", "ssm_alpha"),
                    ("ssm_conv1d", "ssm_dt", "ssm_a", "ssm_norm"), "ssm_out"),
        SHORT_CONV: (3 * s.inner, ("shortconv.in_proj",), ("shortconv.conv",), "shortconv.out_proj"),
        MAMBA: (2 * s.inner, ("ssm_in",), ("ssm_conv1d", "ssm_x", "ssm_dt", "ssm_a", "ssm_d", "ssm_dt_norm",
                                           "ssm_b_norm", "ssm_c_norm"), "ssm_out"),
    }.get(mixer, (2 * s.inner + keys + s.rank, ("ssm_in",), ("ssm_conv1d", "ssm_dt", "ssm_a", "ssm_d", "ssm_norm"),
                  "ssm_out"))
    return {
        "ssm_in": Node("linear", width, (h,), into),
        "ssm_mix": Node("recurrence", s.inner, ("ssm_in",), inner),
        out: Node("linear", d_model, ("ssm_mix",), (last,)),
    }


def _feed_forward(layer: Layer, f: FeedForward, h: str, d_model: int) -> Nodes:
    found = Nodes()
    reads = h if layer.parallel else "attn_resid" if layer.mixers else PREVIOUS
    source = PREVIOUS if layer.parallel or not layer.mixers else "attn_resid"
    if layer.ffn_norm is not None:
        found["ffn_norm"], reads = Node("norm", d_model, (source,), (_short(layer, layer.ffn_norm),)), "ffn_norm"
    if f.experts is None:
        found |= _gated("ffn_", f, f.width, reads)
        found["ffn_out"] = Node("linear", d_model, (_last(f.gate, "ffn_"),), ("ffn_down",))
    else:
        found |= _experts(f, f.experts, reads, source, d_model)
    if layer.ffn_post is not None:
        found["ffn_post_norm"] = Node("norm", d_model, ("ffn_out",), (_short(layer, layer.ffn_post),))
    return found


def _experts(f: FeedForward, e: Experts, reads: str, source: str, d_model: int) -> Nodes:
    found, chosen = Nodes(), e.used * e.width
    x = reads
    if e.own_norms:
        found["moe_norm"], x = Node("norm", d_model, (source,), ("pre_ffw_norm_2",)), "moe_norm"
    found["moe_router"] = Node("linear" if not e.own_norms else "mixture", e.n, (source if e.own_norms else x,),
                               ("ffn_gate_inp",))
    found["moe_weights"] = Node("route", e.n, ("moe_router",), ("exp_probs_b",) * e.choice)
    gate = {"split": "ffn_gate_exps", "joined": "ffn_gate_up_exps"}.get(e.gate)
    up = "ffn_gate_up_exps" if e.gate == "joined" else "ffn_up_exps"
    if gate is not None:
        found["ffn_gate"] = Node("experts", chosen, (x, "moe_weights"), (gate,))
    found["ffn_up"] = Node("experts", chosen, (x, "moe_weights"), (up,))
    found["ffn_silu"] = Node("activation", chosen, ("ffn_gate" if gate else "ffn_up",))
    if gate is not None:
        found["ffn_swigl"] = Node("product", chosen, ("ffn_silu", "ffn_up"))
    found["moe_down"] = Node("experts", e.used * d_model, (_last(e.gate, "ffn_"), "moe_weights"), ("ffn_down_exps",))
    found["moe_out"] = Node("mixture", d_model, ("moe_down", "moe_weights"))
    out: tuple[str, ...] = ("moe_out",)
    if e.own_norms:
        found["moe_post_norm"] = Node("norm", d_model, ("moe_out",), ("post_ffw_norm_2",))
        found |= _gated("shexp_", f, f.width, reads)
        found["shexp_out"] = Node("linear", d_model, (_last(f.gate, "shexp_"),), ("ffn_down",))
        found["shexp_post_norm"] = Node("norm", d_model, ("shexp_out",), ("post_ffw_norm_1",))
        out = ("moe_post_norm", "shexp_post_norm")
    elif e.shared:
        kind = "split" if e.shared_gate else "none"
        found |= _gated("shexp_", FeedForward(e.shared, f.act, kind), e.shared, reads, "_shexp")
        found["shexp_out"] = Node("linear", d_model, (_last(kind, "shexp_"),), ("ffn_down_shexp",))
        out = ("moe_out", "shexp_out")
        if e.shared_router:
            found["shexp_router"] = Node("linear", 1, (reads,), ("ffn_gate_inp_shexp",))
            out = (*out, "shexp_router")
    found["ffn_out"] = Node("residual" if "shexp_router" not in found else "mixture", d_model, out)
    return found


def _gated(stage: str, f: FeedForward, width: int, reads: str, tensor: str = "") -> Nodes:
    """The stages from what a feed-forward reads to what its last product reads."""
    gate, up, act, product = (stage + name.removeprefix("ffn_") for name in _UP)
    found = {up: Node("linear", width, (reads,), (f"ffn_up{tensor}",))}
    if f.gate != "none":
        name = f"ffn_gate{tensor}" if f.gate == "split" else f"ffn_up{tensor}"
        found = {gate: Node("linear", width, (reads,), (name,)), **found}
    found[act] = Node("activation", width, (gate if f.gate != "none" else up,))
    if f.gate != "none":
        found[product] = Node("product", width, (act, up))
    return found


def _last(gate: str, stage: str) -> str:
    return stage + ("silu" if gate == "none" else "swigl")


def _short(layer: Layer, name: str) -> str:
    """A norm's name as nodes have it."""
    return name.removeprefix(layer.prefix).removesuffix(".weight")
