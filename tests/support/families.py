"""Tiny random files of other layer kinds, a case a feature: keys, and the shapes of the tensors of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.builders import add_key

D, V, H, N, K, F, E = 64, 96, 16, 4, 2, 48, 6  # model, vocabulary, head, heads, key heads, feed-forward, experts
Shapes = dict[str, tuple[int, ...]]


def attention(q: int = N * H, norms: bool = False) -> Shapes:
    """Split attention without biases; q: rows of attn_q."""
    found: Shapes = {"attn_norm": (D,), "attn_q": (q, D), "attn_k": (K * H, D), "attn_v": (K * H, D),
                     "attn_output": (D, N * H)}
    return found | ({"attn_q_norm": (H,), "attn_k_norm": (H,)} if norms else {})


def feed_forward(norm: str = "ffn_norm") -> Shapes:
    """A gated feed-forward."""
    return {norm: (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}


def experts(norm: str = "ffn_norm") -> Shapes:
    """E experts of F channels."""
    return {norm: (D,), "ffn_gate_inp": (E, D), "ffn_gate_exps": (E, F, D), "ffn_up_exps": (E, F, D),
            "ffn_down_exps": (E, D, F)}


POST: Shapes = {"post_attention_norm": (D,), "post_ffw_norm": (D,)}
DELTA: Shapes = {"attn_norm": (D,), "attn_qkv": (128, D), "attn_gate": (64, D), "ssm_beta": (4, D), "ssm_alpha": (4, D),
                 "ssm_conv1d": (128, 4), "ssm_dt.bias": (4,), "ssm_a": (4,), "ssm_norm": (16,), "ssm_out": (D, 64)}
MAMBA2: Shapes = {"attn_norm": (D,), "ssm_in": (264, D), "ssm_conv1d": (160, 4), "ssm_conv1d.bias": (160,),
                  "ssm_dt.bias": (8,), "ssm_a": (8, 1), "ssm_d": (8, 1), "ssm_norm": (2, 48), "ssm_out": (D, 96)}
MLA: Shapes = {"attn_norm": (D,), "attn_q_a": (24, D), "attn_q_a_norm": (24,), "attn_q_b": (N * 24, 24),
               "attn_kv_a_mqa": (40, D), "attn_kv_a_norm": (32,), "attn_k_b": (N, 32, 16), "attn_v_b": (N, 16, 32),
               "attn_output": (D, N * 16)}
SSM = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64}
MOE = {"expert_count": E, "expert_used_count": 2, "expert_feed_forward_length": F}


@dataclass(frozen=True, slots=True)
class FamilyCase:
    """An architecture's tiny file. layers: the tensors of each; whole: of the model, beside embedding and norm."""

    arch: str
    layers: tuple[Shapes, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    whole: Shapes = field(default_factory=dict)


CASES = {
    "experts": FamilyCase("qwen3moe", 2 * (attention(norms=True) | experts(),), MOE),
    "sigmoid router, groups, choice, shared": FamilyCase("glm4moe", (
        attention() | feed_forward("post_attention_norm"),
        attention() | experts("post_attention_norm") | {
            "exp_probs_b.bias": (E,), "ffn_gate_shexp": (F, D), "ffn_up_shexp": (F, D), "ffn_down_shexp": (D, F)}),
        MOE | {"expert_gating_func": 2, "expert_group_count": 2, "expert_group_used_count": 1,
               "expert_weights_norm": True, "expert_weights_scale": 1.7}),
    "windows, caps, post norms": FamilyCase("gemma2", 2 * (attention() | feed_forward() | POST,), {
        "attention.sliding_window": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "post norms only": FamilyCase("olmo2", 2 * ({
        k: v for k, v in (attention() | feed_forward() | POST).items() if k not in ("attn_norm", "ffn_norm")
    } | {"attn_q_norm": (N * H,), "attn_k_norm": (K * H,)},)),
    "sinks, clamped gate": FamilyCase("gpt-oss", 2 * (attention() | experts("post_attention_norm") | {
        "attn_sinks": (N,), "ffn_gate_inp.bias": (E,), "ffn_down_exps.bias": (E, D)},),
        MOE | {"attention.sliding_window": 4}),
    "joined products": FamilyCase("phi3", 2 * ({
        "attn_norm": (D,), "attn_qkv": ((N + 2 * K) * H, D), "attn_output": (D, N * H), "ffn_norm": (D,),
        "ffn_up": (2 * F, D), "ffn_down": (D, F)},)),
    "parallel, layer norm": FamilyCase("cohere2", 2 * ({
        k: v for k, v in (attention() | feed_forward()).items() if k != "ffn_norm"},),
        {"logit_scale": 0.25, "attention.sliding_window": 4}),
    "no gate, positions": FamilyCase("gpt2", 2 * ({
        "attn_norm": (D,), "attn_norm.bias": (D,), "attn_qkv": (3 * N * H, D), "attn_qkv.bias": (3 * N * H,),
        "attn_output": (D, N * H), "ffn_norm": (D,), "ffn_up": (F, D), "ffn_up.bias": (F,), "ffn_down": (D, F)},),
        {"attention.head_count_kv": N}, {"position_embd": (64, D)}),
    "gated delta net": FamilyCase("qwen35", (
        DELTA | feed_forward("post_attention_norm"),
        attention(2 * N * H, norms=True) | feed_forward("post_attention_norm")), SSM),
    "Mamba-2": FamilyCase("mamba2", 2 * (MAMBA2,), SSM | {
        "ssm.time_step_rank": 8, "ssm.inner_size": 96, "ssm.group_count": 2, "attention.head_count": 0}),
    "short convolution": FamilyCase("lfm2", (
        {"attn_norm": (D,), "shortconv.in_proj": (3 * D, D), "shortconv.conv": (D, 3), "shortconv.out_proj": (D, D)
         } | feed_forward(), attention(norms=True) | feed_forward()), {"shortconv.l_cache": 3}),
    "latent attention": FamilyCase("deepseek2", 2 * (MLA | feed_forward(),), {
        "attention.q_lora_rank": 24, "attention.kv_lora_rank": 32, "attention.key_length_mla": 24,
        "attention.value_length_mla": 16, "attention.head_count_kv": 1, "rope.dimension_count": 8}),
}


def write_family(
    path: Path, name: str | FamilyCase, keys: Mapping[str, Any] | None = None, extra: Shapes | None = None,
    seed: int = 0, change: Callable[[str, np.ndarray], np.ndarray | None] = lambda name, array: array,
) -> Path:
    """Write a case's file, F32; name: a row of CASES, or a case.

    extra: more tensors, by full name. change: a tensor, or None to leave it out.
    """
    import gguf

    case, rng = CASES[name] if isinstance(name, str) else name, np.random.default_rng(seed)
    told = {"block_count": len(case.layers), "context_length": 64, "embedding_length": D, "feed_forward_length": F,
            "attention.head_count": N, "attention.head_count_kv": K, "attention.key_length": H,
            "attention.value_length": H, "attention.layer_norm_rms_epsilon": 1e-6, "rope.dimension_count": H,
            **case.keys, **(keys or {})}
    writer = gguf.GGUFWriter(path, case.arch)
    for key, value in told.items():
        add_key(writer, key if key.startswith("xielu.") else f"{case.arch}.{key}", value)
    shapes: Shapes = {"token_embd": (V, D), "output_norm": (D,), **case.whole}
    if case.arch == "lfm2":
        shapes["token_embd_norm"] = shapes.pop("output_norm")
    if case.arch == "olmo":
        del shapes["output_norm"]
    shapes |= {f"blk.{i}.{k}": v for i, layer in enumerate(case.layers) for k, v in layer.items()} | (extra or {})
    bare = ("ssm_a", "ssm_d")
    for short, shape in shapes.items():
        full = short if short.endswith((".bias", ".scale", *bare)) else f"{short}.weight"
        std = 0.5 if short == "token_embd" or len(shape) == 1 else shape[-1] ** -0.5
        array = (rng.standard_normal(shape) * std + ("norm" in short and not short.endswith("bias"))).astype(np.float32)
        array = change(full, -np.abs(array) if short.endswith("ssm_a") else array)
        if array is not None:
            writer.add_tensor(full, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
