"""Turn a family's row, a file's keys and its tensors into layers: every rule that says which feature a layer has.

Shapes are held and tensors claimed on the way. Not here: the rows (formats/architectures.py), sizes of the whole model
(arch.py), RoPE (ropes.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

from core.formats.architectures import DEPTHS, Family
from core.model.feed_forward import resolve_feed_forward
from core.model.file_facts import FileFacts
from core.model.layers import (
    ATTENTION,
    DELTA_NET,
    MAMBA,
    MAMBA2,
    MLA,
    RECURRENT,
    SHORT_CONV,
    Attention,
    Layer,
    Mla,
    Temperature,
)
from core.model.nodes import nodes_of
from core.model.recurrent import resolve_recurrent
from core.model.ropes import resolve_rope
from core.system.errors import FileError


def resolve_layer(facts: FileFacts, family: Family, index: int, n_layer: int, before: list[Layer]) -> Layer:
    """Say what layer index is; before: the layers below it. FileError names what is missing or differs."""
    prefix, d_model = f"blk.{index}.", facts.size("embedding_length")
    mixers = _mixers(facts, family, prefix)
    layer = Layer(index, prefix, mixers, None, None, None, None, None)
    if ATTENTION in mixers or MLA in mixers:
        resolve = resolve_mla if MLA in mixers else resolve_attention
        layer = replace(layer, attention=resolve(facts, family, layer, n_layer, before))
    if any(mixer in RECURRENT for mixer in mixers):
        layer = replace(layer, ssm=resolve_recurrent(facts, family, layer, d_model))
    if not family.single or not mixers:
        layer = replace(layer, ffn=resolve_feed_forward(facts, family, prefix, index, d_model))
    layer = _norms(facts, family, layer, d_model)
    layer = _extras(facts, family, layer, d_model)
    for name in family.expects:
        if name.endswith("_norm") and ATTENTION in mixers:
            facts.model.weight(f"{prefix}{name}.weight")
    return replace(layer, nodes=nodes_of(layer, d_model))


def _mixers(facts: FileFacts, family: Family, prefix: str) -> tuple[str, ...]:
    """Which mixers a layer has: their tensors say it."""
    usual = MLA if family.mla else ATTENTION
    if facts.has(f"{prefix}shortconv.in_proj"):
        return (SHORT_CONV,)
    if facts.has(f"{prefix}ssm_x"):
        return (MAMBA,)
    if facts.has(f"{prefix}ssm_in"):
        return (MAMBA2, usual) if facts.has(f"{prefix}attn_q") else (MAMBA2,)
    if facts.has(f"{prefix}ssm_conv1d"):
        return (DELTA_NET,)
    is_forward = facts.has(f"{prefix}ffn_up") or facts.has(f"{prefix}ffn_gate_inp")
    return () if family.single and is_forward and not facts.has(f"{prefix}attn_output") else (usual,)


# --- attention -------------------------------------------------------------------------------------------------------


def is_windowed(facts: FileFacts, family: Family, index: int, n_layer: int) -> bool:
    """Whether attention of a layer sees a window only."""
    if not family.window or not facts.value("attention.sliding_window", family.window_size):
        return False
    pattern = facts.value("attention.sliding_window_pattern", family.window)
    if isinstance(pattern, list):
        return index < len(pattern) and bool(pattern[index])
    return family.window_layers in (None, n_layer) and index % pattern < pattern - 1


def resolve_attention(facts: FileFacts, family: Family, layer: Layer, n_layer: int, before: list[Layer]) -> Attention:
    """Say what a layer's attention is, and claim its tensors."""
    i, prefix, d_model = layer.index, layer.prefix, facts.size("embedding_length")
    n_head = facts.size("attention.head_count", layer=i)
    n_kv = facts.size("attention.head_count_kv", n_head, layer=i)
    windowed = is_windowed(facts, family, i, n_layer)
    width = facts.size("attention.key_length", d_model // n_head, layer=i)
    values = facts.size("attention.value_length", width, layer=i)
    if windowed:
        width = facts.size("attention.key_length_swa", width)
        values = facts.size("attention.value_length_swa", width)
    if values != width:
        raise FileError(f"{facts.model.path.name}: keys and values of a head differ in width; "
                        "this build needs them equal.")
    if n_head % n_kv:
        raise FileError(f"{facts.model.path.name}: {n_head} query heads cannot share {n_kv} key-value heads evenly.")
    rope = resolve_rope(facts, family, width, windowed) if _is_turned(facts, family, i, n_layer, windowed) else None
    a = Attention(
        n_head, n_kv, width, rope, _scale(facts, family, n_layer, d_model, n_head),
        window=facts.size("attention.sliding_window", family.window_size) if windowed else 0, chunked=family.chunked,
        cap=facts.real("attn_logit_softcapping", family.reads["attn_logit_softcapping"])
        if "attn_logit_softcapping" in family.reads else 0.0,
        sinks=facts.hold(f"{prefix}attn_sinks.weight", n_head, needed="attn_sinks" in family.expects),
        alibi=family.alibi, norm_after_rope=family.qk_norm_after_rope, l2=family.qk_l2 and rope is not None,
        v_norm=family.v_norm, gate="query" if family.q_gate else "", joined=facts.has(f"{prefix}attn_qkv"),
        clamp=facts.real("attention.clamp_kqv", 0.0) if "attention.clamp_kqv" in family.reads else 0.0,
        temperature=_temperature(facts, family, rope is not None))
    a = _shared(facts, family, layer, a, n_layer, before)
    return _claim_attention(facts, layer, a, d_model)


def _claim_attention(facts: FileFacts, layer: Layer, a: Attention, d_model: int) -> Attention:
    prefix, (q, k, v) = layer.prefix, a.widths
    if a.joined:
        facts.linear(f"{prefix}attn_qkv", q + k + v, d_model)
    else:
        for name, rows in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            if rows:
                facts.linear(f"{prefix}{name}", rows, d_model)
    facts.linear(f"{prefix}attn_output", d_model, a.n_head * a.width)
    own = not a.gate and facts.linear(f"{prefix}attn_gate", a.n_head * a.width, d_model, needed=False)
    q_norm = _qk_norm(facts, f"{prefix}attn_q_norm", a.n_head, a.width)
    k_norm = _qk_norm(facts, f"{prefix}attn_k_norm", a.n_kv, a.width) if k else ""
    return replace(a, q_norm=q_norm, k_norm=k_norm, gate="own" if own else a.gate)


def _qk_norm(facts: FileFacts, name: str, n_head: int, width: int) -> str:
    """Claim a norm of q or k: over a head, or over the whole width; "" where there is none."""
    if not facts.has(name):
        return ""
    shape = facts.shape(name)
    if shape == (n_head * width,) and n_head > 1:
        facts.hold(f"{name}.weight", n_head * width)
        return "whole"
    facts.hold(f"{name}.weight", *((n_head, width) if len(shape) == 2 else (width,)))
    return "head"


def _shared(
    facts: FileFacts, family: Family, layer: Layer, a: Attention, n_layer: int, before: list[Layer]
) -> Attention:
    """Gemma 4: the last layers read an earlier one's keys and values; values without a tensor are the keys."""
    n_shared = facts.size("attention.shared_kv_layers", 0, least=0) if family.v_norm else 0
    if n_shared and layer.index >= n_layer - n_shared and not facts.has(f"{layer.prefix}attn_k"):
        same = [b.index for b in before if b.attention and b.attention.own_k
                and bool(b.attention.window) == bool(a.window)]
        if not same:
            raise FileError(f"{facts.model.path.name}: layer {layer.index} shares keys, but no layer before it can.")
        return replace(a, own_k=False, own_v=False, kv_from=same[-1])
    return replace(a, own_v=facts.has(f"{layer.prefix}attn_v") if family.v_norm else True)


def _is_turned(facts: FileFacts, family: Family, index: int, n_layer: int, windowed: bool) -> bool:
    """Whether RoPE turns the queries and keys of a layer."""
    if family.pairing == "none":
        return False
    if family.rope_on == "window":
        return windowed or not any(is_windowed(facts, family, i, n_layer) for i in range(min(n_layer, 64)))
    if family.rope_on == "finetuned":
        return facts.value("rope.scaling.finetuned", True) is not False
    return family.rope_on == "all" or (index + 1) % 4 != 0


def _scale(facts: FileFacts, family: Family, n_layer: int, d_model: int, n_head: int) -> float | None:
    if family.attn_scale == "one":
        return 1.0
    if family.attn_scale == "depth" and (facts.name, n_layer) in DEPTHS:
        return 1 / math.sqrt(d_model / n_head)
    said = facts.real("attention.scale", family.reads["attention.scale"]) if "attention.scale" in family.reads else 0.0
    return said or None


def _temperature(facts: FileFacts, family: Family, turned: bool) -> Temperature | None:
    if family.temperature is not None:
        return None if turned else Temperature(*family.temperature)
    if facts.name not in ("mistral3", "mistral4", "deepseek2"):
        return None
    scale = facts.real("attention.temperature_scale", 0.0)
    length = facts.real("rope.scaling.original_context_length", facts.real("context_length", 2048))
    return Temperature(scale, length, 0.0) if scale else None


def resolve_mla(facts: FileFacts, family: Family, layer: Layer, n_layer: int, before: list[Layer]) -> Attention:
    """Say what a layer's latent attention is, and claim its tensors."""
    prefix, d_model = layer.prefix, facts.size("embedding_length")
    n, rank = facts.size("attention.head_count"), facts.size("attention.kv_lora_rank")
    turned = facts.size("rope.dimension_count")
    joined = facts.has(f"{prefix}attn_kv_b")
    k = facts.size("attention.key_length_mla", facts.size("attention.key_length") if joined else None)
    v = facts.size("attention.value_length_mla", facts.size("attention.value_length") if joined else None)
    q_rank = facts.size("attention.q_lora_rank", 0, least=0) if facts.has(f"{prefix}attn_q_a") else 0
    facts.read.add("attention.q_lora_rank")
    if not turned < k:
        raise FileError(f"{facts.model.path.name}: RoPE of {turned} channels cannot turn heads of {k}.")
    if q_rank:
        facts.linear(f"{prefix}attn_q_a", q_rank, d_model)
        facts.hold(f"{prefix}attn_q_a_norm.weight", q_rank)
    facts.linear(f"{prefix}{'attn_q_b' if q_rank else 'attn_q'}", n * k, q_rank or d_model)
    facts.linear(f"{prefix}attn_kv_a_mqa", rank + turned, d_model)
    facts.hold(f"{prefix}attn_kv_a_norm.weight", rank)
    if joined:
        facts.linear(f"{prefix}attn_kv_b", n * (k - turned + v), rank)
    else:
        facts.hold(f"{prefix}attn_k_b.weight", n, rank, k - turned)
        facts.hold(f"{prefix}attn_v_b.weight", n, v, rank)
    facts.linear(f"{prefix}attn_output", d_model, n * v)
    rope = resolve_rope(facts, family, turned, False)
    log = facts.real("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    m = 1 + 0.1 * log * math.log(rope.factor) if log else 1.0
    return Attention(n, n, k, rope, m * m / math.sqrt(k), temperature=_temperature(facts, family, True),
                     mla=Mla(q_rank, rank, turned, k, v, joined))


# --- norms and what stands around ------------------------------------------------------------------------------------


def _norms(facts: FileFacts, family: Family, layer: Layer, d_model: int) -> Layer:
    """Say which norms a layer has, where they stand, and claim them."""
    p = layer.prefix

    def norm(name: str, needed: bool = True) -> str | None:
        full = f"{p}{name}" if f"{p}{name}" in facts.model.weights else f"{p}{name}.weight"  # falcon-h1 leaves it out
        if family.norm == "plain":
            return full
        found = facts.hold(full, d_model, needed=needed)
        facts.hold(f"{p}{name}.bias", d_model, needed=False)
        return full if found else None

    if not layer.mixers:
        return replace(layer, ffn_norm=norm("attn_norm"))
    if layer.ffn is None:
        return replace(layer, attn_norm=norm("attn_norm"))
    sandwich = facts.has(f"{p}post_ffw_norm")
    post_only = sandwich and not facts.has(f"{p}attn_norm")
    ffn_norm = "ffn_norm" if sandwich or facts.has(f"{p}ffn_norm") or not facts.has(f"{p}post_attention_norm") else (
        "post_attention_norm")
    parallel = family.parallel or bool(facts.value("use_parallel_residual", False)) or (
        facts.name == "stablelm" and not facts.has(f"{p}ffn_norm"))
    second = parallel and facts.has(f"{p}attn_norm_2")
    return replace(
        layer, parallel=parallel,
        attn_norm=None if post_only else norm("attn_norm_2" if second else "attn_norm"),
        ffn_norm=norm("attn_norm") if second else None if post_only else norm(ffn_norm, needed=not parallel),
        attn_post=norm("post_attention_norm") if sandwich else None,
        ffn_post=norm("post_ffw_norm") if sandwich else None)


def _extras(facts: FileFacts, family: Family, layer: Layer, d_model: int) -> Layer:
    """Scales of the residual stream and Gemma 4's per-layer inputs."""
    p, n = layer.prefix, 0
    if facts.has(f"{p}inp_gate"):
        n = facts.size("embedding_length_per_layer_input")
        facts.linear(f"{p}inp_gate", n, d_model)
        facts.linear(f"{p}proj", d_model, n)
        facts.hold(f"{p}post_norm.weight", d_model)
    residual = facts.real("residual_scale", family.reads["residual_scale"]) if "residual_scale" in family.reads else 1.0
    return replace(layer, per_layer=n, residual=residual or 1.0,
                   scaled=facts.hold(f"{p}layer_output_scale.weight", 1, needed=False))
