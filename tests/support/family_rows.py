"""A tiny random file for every row of the table of families: two to four layers, one of each kind that it has."""

from __future__ import annotations

from typing import Any

from core.formats.architectures import ARCHS, POST_NORMS, QK_NORMS, QKV_BIASES, Family
from tests.support.families import (
    DELTA,
    MAMBA2,
    MLA,
    MOE,
    SSM,
    D,
    E,
    F,
    FamilyCase,
    H,
    K,
    N,
    Shapes,
    attention,
    experts,
    feed_forward,
)

SHARED_EXPERT: Shapes = {"ffn_gate_shexp": (F, D), "ffn_up_shexp": (F, D), "ffn_down_shexp": (D, F)}
SHARED_ROUTER: Shapes = {"ffn_gate_inp_shexp": (D,)}
CHOICE: Shapes = {"exp_probs_b.bias": (E,)}
CONV: Shapes = {"attn_norm": (D,), "shortconv.in_proj": (3 * D, D), "shortconv.conv": (D, 3),
                "shortconv.out_proj": (D, D)}
MAMBA: Shapes = {"attn_norm": (D,), "ssm_in": (128, D), "ssm_conv1d": (64, 4), "ssm_conv1d.bias": (64,),
                 "ssm_x": (36, 64), "ssm_dt": (64, 4), "ssm_dt.bias": (64,), "ssm_a": (64, 16), "ssm_d": (64,),
                 "ssm_out": (D, 64)}
MAMBA_NORMS: Shapes = {"ssm_dt_norm": (4,), "ssm_b_norm": (16,), "ssm_c_norm": (16,)}
PACKED: Shapes = {k: v for k, v in DELTA.items() if k not in ("ssm_beta", "ssm_alpha")} | {"ssm_ba": (8, D)}
ALONE: Shapes = {"attn_norm": (D,), "ffn_up": (F, D), "ffn_down": (D, F)}  # a layer that is a feed-forward
MAMBA2_KEYS = SSM | {"ssm.time_step_rank": 8, "ssm.inner_size": 96}
MLA_KEYS = {"attention.q_lora_rank": 24, "attention.kv_lora_rank": 32, "attention.key_length_mla": 24,
            "attention.value_length_mla": 16, "attention.head_count_kv": 1, "rope.dimension_count": 8}
XIELU = {f"xielu.{k}": v for k, v in (("alpha_p", [0.8] * 2), ("alpha_n", [0.7] * 2), ("beta", [0.5] * 2),
                                       ("eps", [-1e-6] * 2))}
VALUES = {"embedding_scale": 1.5, "residual_scale": 0.6, "logit_scale": 0.25, "attention.scale": 0.3,
          "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "attention.clamp_kqv": 1.5}

JOINED = ("phi3", "chatglm", "starcoder", "gpt2", "bloom", "gptneox", "falcon", "phi2")
UP_HOLDS_GATE = ("phi3", "chatglm", "glm4")
WHOLE_NORMS = ("olmo2", "olmoe", "minimax-m2")
POST_ONLY = ("olmo2", "exaone4")
NAMED_POST = ("gpt-oss", "glm4moe", "qwen3next", "qwen35", "qwen35moe", "seed_oss")  # how they call the norm before
POSITIONS = ("gpt2", "starcoder")
HAS_EXPERTS = {  # beside the experts: what stands there, and whether a dense layer leads
    "qwen2moe": (SHARED_EXPERT | SHARED_ROUTER, False), "qwen3moe": ({}, False), "qwen3vlmoe": ({}, False),
    "olmoe": ({}, False), "granitemoe": ({}, False), "ernie4_5-moe": (SHARED_EXPERT | CHOICE, True),
    "hunyuan-moe": (SHARED_EXPERT, False), "gpt-oss": ({}, False), "glm4moe": (SHARED_EXPERT | CHOICE, True),
    "dots1": (SHARED_EXPERT | CHOICE, True), "minimax-m2": (CHOICE, False),
    "exaone-moe": (SHARED_EXPERT | CHOICE, True),
    "afmoe": (SHARED_EXPERT | CHOICE | {"attn_gate": (N * H, D)}, False), "llama4": (SHARED_EXPERT, True),
    "deepseek2": (SHARED_EXPERT | CHOICE, True), "mistral4": (SHARED_EXPERT, False),
    "qwen3next": (SHARED_EXPERT | SHARED_ROUTER, False), "qwen35moe": (SHARED_EXPERT | SHARED_ROUTER, False),
    "lfm2moe": (CHOICE, True), "granitehybrid": (SHARED_EXPERT, False),
}
LINEAR: dict[str, tuple[Shapes, dict[str, Any]]] = {  # the first layer's mixer in place of attention
    "qwen3next": (PACKED, SSM), "qwen35": (DELTA, SSM), "qwen35moe": (DELTA, SSM),
    "lfm2": (CONV, {"shortconv.l_cache": 3}), "lfm2moe": (CONV, {"shortconv.l_cache": 3}),
    "jamba": (MAMBA | MAMBA_NORMS, SSM), "granitehybrid": (MAMBA2, MAMBA2_KEYS),
}


def case_of(name: str) -> FamilyCase:
    """The case of a row of ARCHS."""
    family = ARCHS[name]
    keys = {k: VALUES[k] for k in family.reads} | ({"attention.sliding_window": 4} if family.window else {})
    if name == "gemma4":
        return FamilyCase(name, _gemma4(), keys | MOE)
    if family.single:
        moe = MOE if name == "nemotron_h_moe" else {}
        return FamilyCase(name, _single(name), keys | moe | (SSM if name == "mamba" else MAMBA2_KEYS | {
            "attention.head_count": 0 if name == "mamba2" else N}))
    attend = MLA if family.mla else _attention(name, family)
    dense, moe = _feed_forward(name, family), _experts(name, family)
    mixers = [LINEAR[name][0], attend] if name in LINEAR else [attend, attend]
    if name == "falcon-h1":
        mixers = [attend | MAMBA2] * 2
        keys |= MAMBA2_KEYS
    second = dense if name not in HAS_EXPERTS else moe
    first = dense if name not in HAS_EXPERTS or HAS_EXPERTS[name][1] else moe
    layers = tuple(_dropped(name, family, mixer | forward)
                   for mixer, forward in zip(mixers, (first, second), strict=True))
    keys |= (LINEAR[name][1] if name in LINEAR else {}) | (MLA_KEYS if family.mla else {})
    keys |= MOE if name in HAS_EXPERTS else {}
    keys |= XIELU if family.act == "xielu" else {}
    keys |= {"attention.layer_norm_epsilon": 1e-5} if family.norm != "rms" else {}
    keys |= {"attention.head_count_kv": N} if name in ("gpt2", "bloom", "gptneox") else {}
    whole: Shapes = {"position_embd": (64, D)} if name in POSITIONS else {}
    return FamilyCase(name, layers, keys, whole | ({"token_embd_norm": (D,)} if name == "bloom" else {}))


def _attention(name: str, family: Family) -> Shapes:
    found = attention(2 * N * H if family.q_gate else N * H)
    keys = N if name in ("gpt2", "bloom", "gptneox") else K
    if name in JOINED:
        found = {k: v for k, v in found.items() if k not in ("attn_q", "attn_k", "attn_v")}
        found["attn_qkv"] = ((N + 2 * keys) * H, D)
    if family.expects[:2] == QK_NORMS or family.q_gate or name in ("lfm2", "lfm2moe"):
        whole = name in WHOLE_NORMS
        found |= {"attn_q_norm": (N * H,) if whole else (H,), "attn_k_norm": (K * H,) if whole else (H,)}
    if set(QKV_BIASES) <= set(family.expects):
        found |= {"attn_q.bias": (N * H,), "attn_k.bias": (K * H,), "attn_v.bias": (K * H,)}
    if "attn_sinks" in family.expects:
        found["attn_sinks"] = (N,)
    return found | (dict.fromkeys(POST_NORMS, (D,)) if set(POST_NORMS) <= set(family.expects) else {})


def _feed_forward(name: str, family: Family) -> Shapes:
    norm = "post_attention_norm" if name in NAMED_POST else "ffn_norm"
    found = feed_forward(norm)
    if name in UP_HOLDS_GATE:
        found["ffn_up"] = (2 * F, D)
    if name in UP_HOLDS_GATE or not family.is_gated:
        del found["ffn_gate"]
    return found


def _experts(name: str, family: Family) -> Shapes:
    found = experts("post_attention_norm" if name in NAMED_POST else "ffn_norm")
    biases: Shapes = {"ffn_gate_inp.bias": (E,), "ffn_down_exps.bias": (E, D)} if name == "gpt-oss" else {}
    return found | biases | HAS_EXPERTS.get(name, ({}, False))[0]


def _dropped(name: str, family: Family, layer: Shapes) -> Shapes:
    """Without the norms that the family's layers lack; LayerNorm has biases."""
    lacks = ["attn_norm", "ffn_norm"] if name in POST_ONLY or family.norm == "plain" else []
    lacks += ["ffn_norm"] if family.parallel else []
    layer = {k: v for k, v in layer.items() if k not in lacks}
    if family.norm != "layer":
        return layer
    return layer | {f"{k}.bias": (D,) for k in ("attn_norm", "ffn_norm") if k in layer}


def _single(name: str) -> tuple[Shapes, ...]:
    """Layers of one mixer or one feed-forward."""
    if name in ("mamba", "mamba2"):
        return ({"mamba": MAMBA, "mamba2": MAMBA2}[name],) * 2
    last: Shapes = ALONE
    if name == "nemotron_h_moe":
        last = {"attn_norm": (D,), "ffn_gate_inp": (E, D), "ffn_up_exps": (E, F, D), "ffn_down_exps": (E, D, F),
                "ffn_up_shexp": (F, D), "ffn_down_shexp": (D, F)} | CHOICE
    return MAMBA2, attention(), last


def _gemma4() -> tuple[Shapes, ...]:
    """A dense layer, then one with experts beside its feed-forward."""
    dense = attention(norms=True) | feed_forward() | dict.fromkeys(POST_NORMS, (D,)) | {"layer_output_scale": (1,)}
    beside = experts("pre_ffw_norm_2") | {"post_ffw_norm_1": (D,), "post_ffw_norm_2": (D,), "ffn_gate_inp.scale": (D,)}
    return dense, dense | beside
