"""Tiny random files of architectures and features for which there is no reference file: llama.cpp is their judge.

A layer is a dict of tensors without blk.N. and .weight; a case is an architecture, its layers, keys and other tensors.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.builders import add_key

D, N, K, H, F, V, E, W = 64, 4, 2, 16, 96, 96, 8, 32  # model, query and key heads, head, forward, vocabulary, experts
Shapes = dict[str, tuple[int, ...]]
Case = tuple[str, list[Shapes], dict[str, Any], Shapes]


def attn(k: int = K, bias: tuple[str, ...] = (), norms: Shapes | None = None, norm: bool = True) -> Shapes:
    """Attention with products of its own."""
    made = {"attn_q": (N * H, D), "attn_k": (k * H, D), "attn_v": (k * H, D), "attn_output": (D, N * H)}
    return {**made, **({"attn_norm": (D,)} if norm else {}), **(norms or {}),
            **{f"attn_{b}.bias": made[f"attn_{b}"][:1] for b in bias}}


def joined(k: int = K) -> Shapes:
    """Attention whose products are one."""
    return {"attn_norm": (D,), "attn_qkv": ((N + 2 * k) * H, D), "attn_output": (D, N * H)}


def ffn(gate: bool = True, norm: str = "ffn_norm", up: int = F) -> Shapes:
    """A dense feed-forward. up: rows of ffn_up, twice as many where it holds the gate."""
    return {**({norm: (D,)} if norm else {}), "ffn_up": (up, D), "ffn_down": (D, F),
            **({"ffn_gate": (F, D)} if gate else {})}


def moe(gate: bool = True, norm: str = "ffn_norm", choice: bool = False, shared: int = 0) -> Shapes:
    """Experts."""
    made: Shapes = {"ffn_gate_inp": (E, D), "ffn_up_exps": (E, W, D), "ffn_down_exps": (E, D, W)}
    made |= {"ffn_gate_exps": (E, W, D)} if gate else {}
    made |= {norm: (D,)} if norm else {}
    made |= {"exp_probs_b.bias": (E,)} if choice else {}
    both = ("gate", "up") if gate else ("up",)
    made |= {"ffn_down_shexp": (D, shared), **{f"ffn_{part}_shexp": (shared, D) for part in both}} if shared else {}
    return made


def biased(layer: Shapes, *also: str) -> Shapes:
    """The layer with a bias of each norm over the model's width, and of those products."""
    norms = [name for name in layer if name in ("attn_norm", "ffn_norm", "attn_norm_2")]
    return {**layer, **{f"{name}.bias": layer[name][:1] for name in (*norms, *also)}}


HEADS: Shapes = {"attn_q_norm": (H,), "attn_k_norm": (H,)}
WHOLE: Shapes = {"attn_q_norm": (N * H,), "attn_k_norm": (K * H,)}
EACH: Shapes = {"attn_q_norm": (N, H), "attn_k_norm": (K, H)}
QKV, QKVO = ("q", "k", "v"), ("q", "k", "v", "output")
POST: Shapes = {"post_attention_norm": (D,), "post_ffw_norm": (D,)}
OUT: Shapes = {"output": (V, D)}
FACTORS: Shapes = {"rope_freqs": (H // 2,)}
LAYER = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
PART = {"rope.dimension_count": 8}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
SCALES = {"embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0, "attention.scale": 0.0156}
MOE = {"expert_count": E, "expert_used_count": 2, "expert_feed_forward_length": W, "feed_forward_length": W}
SIGMOID = MOE | {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.75,
                 "expert_shared_count": 1, "leading_dense_block_count": 1, "feed_forward_length": F}
WINDOW = {"attention.sliding_window": 8}
MLA: Shapes = {
    "attn_norm": (D,), "attn_q_a": (24, D), "attn_q_a_norm": (24,), "attn_q_b": (N * 24, 24), "attn_kv_a_mqa": (40, D),
    "attn_kv_a_norm": (32,), "attn_k_b": (N, 32, 16), "attn_v_b": (N, 16, 32), "attn_output": (D, N * 16)}
LATENT = {"attention.q_lora_rank": 24, "attention.kv_lora_rank": 32, "attention.key_length": 40,
          "attention.value_length": 32, "attention.key_length_mla": 24, "attention.value_length_mla": 16,
          "attention.head_count_kv": 1, **PART}
SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.time_step_rank": 8, "ssm.group_count": 2}
MAMBA2: Shapes = {
    "attn_norm": (D,), "ssm_in": (328, D), "ssm_conv1d": (192, 4), "ssm_conv1d.bias": (192,), "ssm_dt.bias": (8,),
    "ssm_a": (8, 1), "ssm_d": (8, 1), "ssm_norm": (2, 64), "ssm_out": (D, 128)}
MAMBA: Shapes = {
    "attn_norm": (D,), "ssm_in": (256, D), "ssm_conv1d": (128, 4), "ssm_conv1d.bias": (128,), "ssm_x": (40, 128),
    "ssm_dt": (128, 8), "ssm_dt.bias": (128,), "ssm_a": (128, 16), "ssm_d": (128,), "ssm_out": (D, 128)}
CONV: Shapes = {"attn_norm": (D,), "shortconv.in_proj": (3 * D, D), "shortconv.conv": (D, 3),
                "shortconv.out_proj": (D, D)}
NO_HEADS = SSM | {"attention.head_count": 0, "feed_forward_length": 0}
HYBRID = SSM | {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": [0, K, 0]}
AFMOE = attn(norms=HEADS) | {"attn_gate": (N * H, D)} | POST
SINGLE: Shapes = {"attn_norm": (D,)}
GROUPS = {"expert_group_count": 4, "expert_group_used_count": 2}
GPT = biased(joined(N) | ffn(False), "attn_qkv", "attn_output", "ffn_up", "ffn_down")

MORE: dict[str, Case] = {
    "afmoe": ("afmoe", [AFMOE | ffn(), *3 * [AFMOE | moe(choice=True, shared=W)]], SIGMOID | WINDOW, OUT),
    "afmoe, no norm key": ("afmoe", [AFMOE | ffn(), *3 * [AFMOE | moe(choice=True, shared=W)]],
                           SIGMOID | WINDOW | {"expert_weights_norm": None}, OUT),
    "arcee, YaRN": ("arcee", 2 * [attn() | ffn(False)], YARN, OUT),
    "chatglm, joined": ("chatglm", 2 * [joined() | {"attn_qkv.bias": (128,)} | ffn(False, up=2 * F)], PART, OUT),
    "chatglm, split": ("chatglm", 2 * [attn(bias=QKV) | ffn(False, up=2 * F)], PART, OUT),
    "command-r": ("command-r", 2 * [attn() | ffn(norm="")], LAYER | {"logit_scale": 0.0625}, {}),
    "command-r, norms of q and k": ("command-r", 64 * [attn(norms=EACH) | ffn(norm="")],
                                    LAYER | {"logit_scale": 0.0625}, {}),
    "dots1": ("dots1", [attn(N, norms=HEADS) | ffn(), *2 * [attn(N, norms=HEADS) | moe(choice=True, shared=2 * W)]],
              SIGMOID | {"expert_shared_count": 2, "attention.head_count_kv": N}, OUT),
    "ernie4_5": ("ernie4_5", 2 * [attn(bias=QKV) | ffn()], {}, {}),
    "exaone-moe": ("exaone-moe", [attn(norms=HEADS) | ffn(), *4 * [attn(norms=HEADS) | moe(choice=True, shared=W)]],
                   SIGMOID | WINDOW | {"expert_shared_feed_forward_length": W}, OUT | FACTORS),
    "exaone-moe, no norm key": (
        "exaone-moe", [attn(norms=HEADS) | ffn(), *3 * [attn(norms=HEADS) | moe(choice=True, shared=W)]],
        SIGMOID | WINDOW | {"expert_shared_feed_forward_length": W, "expert_weights_norm": None}, OUT),
    "exaone4, short": ("exaone4", 4 * [attn(norms=HEADS, norm=False) | ffn(norm="") | POST], WINDOW, FACTORS),
    "gemma": ("gemma", 2 * [attn() | ffn()], {}, {}),
    "gemma2, 46 layers": ("gemma2", 46 * [attn() | ffn() | POST],
                          WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, {}),
    "gemma3, linear RoPE, cap": ("gemma3", 6 * [attn(norms=HEADS) | ffn() | POST], WINDOW | {
        "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        "final_logit_softcapping": 30.0}, {}),
    "hunyuan-dense": ("hunyuan-dense", 2 * [attn(norms=HEADS) | ffn()], {"rope.freq_base": 11158.7}, {}),
    "lfm2moe": ("lfm2moe", [CONV | ffn(), attn(norms=HEADS) | moe(choice=True), CONV | moe(choice=True)],
                MOE | {"feed_forward_length": F, "expert_gating_func": 2, "leading_dense_block_count": 1,
                       "shortconv.l_cache": 3, "attention.head_count_kv": [0, K, 0]}, {}),
    "minicpm, long RoPE": ("minicpm", 2 * [attn() | ffn()], SCALES | {
        "attention.scale": None, "rope.scaling.original_context_length": 64, "context_length": 128,
        "rope.scaling.attn_factor": 1.2, "rope.scaling.type": "longrope"},
        {"rope_factors_long": (8,), "rope_factors_short": (8,)}),
    "mamba": ("mamba", 2 * [MAMBA], NO_HEADS | {"ssm.group_count": None}, {}),
    "falcon mamba": ("mamba", 2 * [MAMBA], NO_HEADS | {"ssm.group_count": None, "ssm.dt_b_c_rms": True}, {}),
    "mistral3, YaRN, temperature": ("mistral3", 2 * [attn() | ffn()], YARN | {
        "attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 1.0,
        "rope.scaling.original_context_length": 16}, OUT),
    "mistral3, experts": ("mistral3", 2 * [attn() | moe()], MOE, OUT),
    "mistral4": ("mistral4", 2 * [MLA | moe(shared=W)], LATENT | MOE | YARN | {
        "expert_gating_func": 1, "expert_weights_norm": True, "expert_shared_count": 1, "leading_dense_block_count": 0,
        "rope.scaling.yarn_log_multiplier": 0.1}, OUT),
    "deepseek2, YaRN, groups": ("deepseek2", [MLA | ffn(), *2 * [MLA | moe(choice=True, shared=W)]],
                                LATENT | SIGMOID | YARN | GROUPS | {"rope.scaling.yarn_log_multiplier": 0.0707}, OUT),
    "deepseek2, joined k and v": (
        "deepseek2", [{k: v for k, v in {**MLA, "attn_kv_b": (N * 32, 32)}.items() if k not in ("attn_k_b", "attn_v_b")}
                      | part for part in (ffn(), moe(choice=True, shared=W))],
        {k: v for k, v in LATENT.items() if "_mla" not in k} | SIGMOID | {
            "attention.key_length": 24, "attention.value_length": 16, "attention.head_count_kv": N}, OUT),
    "nemotron": ("nemotron", 2 * [biased(attn(bias=QKVO) | ffn(False))], LAYER | PART, OUT),
    "nemotron_h": ("nemotron_h", [MAMBA2, attn(), SINGLE | ffn(False, "")],
                   HYBRID | {"feed_forward_length": [0, 0, F]}, OUT),
    "nemotron_h_moe, groups": ("nemotron_h_moe", [MAMBA2, attn(), SINGLE | moe(False, "", True, 48)], {
        **SIGMOID, **HYBRID, **GROUPS, "feed_forward_length": [0, 0, W], "expert_shared_feed_forward_length": 48}, OUT),
    "olmo, clamp": ("olmo", 2 * [attn(norm=False) | ffn(norm="")], LAYER | {"attention.clamp_kqv": 0.4}, {}),
    "olmo2, YaRN, windows": ("olmo2", 4 * [attn(norms=WHOLE, norm=False) | ffn(norm="") | POST],
                             YARN | WINDOW | {"rope.scaling.attn_factor": 1.1}, OUT),
    "olmoe": ("olmoe", 2 * [attn(N, norms=WHOLE | {"attn_k_norm": (N * H,)}) | moe()],
              MOE | {"attention.head_count_kv": N}, OUT),
    "phi2": ("phi2", 2 * [biased(attn(N, bias=QKVO) | ffn(False, ""), "ffn_up", "ffn_down")],
             LAYER | PART | {"attention.head_count_kv": N}, OUT | {"output.bias": (V,)}),
    "qwen3vl": ("qwen3vl", 2 * [attn(norms=HEADS) | ffn()],
                {"rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 3}, {}),
    "qwen3vlmoe": ("qwen3vlmoe", 2 * [attn(norms=HEADS) | moe()],
                   MOE | {"rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 3}, OUT),
    "seed_oss": ("seed_oss", 2 * [attn(bias=QKV) | ffn(norm="post_attention_norm")], {}, OUT),
    "stablelm": ("stablelm", 2 * [biased(attn(bias=QKV) | ffn())], LAYER | {"rope.dimension_count": 4}, OUT),
    "starcoder": ("starcoder", 2 * [biased(joined(1) | ffn(False), "attn_qkv", "attn_output", "ffn_up", "ffn_down")],
                  LAYER | {"attention.head_count_kv": 1}, {"position_embd": (64, D)}),
    "falcon, two norms": ("falcon", 2 * [biased(joined() | {"attn_norm_2": (D,)} | ffn(False, ""))], LAYER, OUT),
    "gptneox, one after the other": ("gptneox", 2 * [GPT], LAYER | {
        "attention.head_count_kv": N, "use_parallel_residual": False, "rope.dimension_count": 4}, OUT),
    "granitemoe, shared": ("granitemoe", 2 * [attn() | moe(shared=48)],
                           MOE | SCALES | {"expert_shared_feed_forward_length": 48}, {}),
    "granitehybrid, dense": ("granitehybrid", [MAMBA2 | ffn(), attn() | ffn()],
                             SSM | SCALES | {"attention.head_count_kv": [0, K], "rope.scaling.finetuned": False}, {}),
    "granitehybrid, RoPE": ("granitehybrid", [MAMBA2 | moe(shared=48), attn() | moe(shared=48)], SSM | MOE | SCALES | {
        "attention.head_count_kv": [0, K], "expert_shared_feed_forward_length": 48}, {}),
    "llama4, every layer routed": ("llama4", 4 * [attn() | moe(shared=W)], MOE | {
        "expert_used_count": 1, "interleave_moe_layer_step": 1}, OUT | FACTORS),
    "llama, a log multiplier": ("llama", 2 * [attn() | ffn()], YARN | {"rope.scaling.yarn_log_multiplier": 1.0}, OUT),
    "glm4moe, multi-token prediction": (
        "glm4moe", [attn(bias=QKV, norms=HEADS) | ffn(norm="post_attention_norm"), *2 * [
            attn(bias=QKV, norms=HEADS) | moe(norm="post_attention_norm", choice=True, shared=W)]],
        SIGMOID | PART, OUT),
    "gpt-oss, YaRN": ("gpt-oss", 2 * [attn(bias=QKVO) | {"attn_sinks": (N,)} | moe(norm="post_attention_norm") | {
        "ffn_gate_inp.bias": (E,), "ffn_gate_exps.bias": (E, W), "ffn_up_exps.bias": (E, W),
        "ffn_down_exps.bias": (E, D)}], MOE | YARN | WINDOW, OUT),
}


def write_more(path: Path, name: str) -> Path:
    """Write a case's file, F32, without a tokenizer."""
    import gguf

    arch, layers, keys, whole = MORE[name]
    told = {"block_count": len(layers), "context_length": 64, "embedding_length": D, "feed_forward_length": F,
            "attention.head_count": N, "attention.head_count_kv": K, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": H, "attention.key_length": H, "attention.value_length": H, "vocab_size": V, **keys}
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("no_vocab")
    for key, value in told.items():
        if value is not None:
            add_key(writer, f"{arch}.{key}", value)
    out_norm = "token_embd_norm" if arch == "lfm2moe" else "output_norm"
    shapes: Shapes = {"token_embd": (V, D), **({} if arch == "olmo" else {out_norm: (D,)}), **whole}
    if "attn_norm.bias" in layers[0]:
        shapes["output_norm.bias"] = (D,)
    shapes |= {f"blk.{i}.{short}": shape for i, layer in enumerate(layers) for short, shape in layer.items()}
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for short, shape in shapes.items():
        full = short if short.endswith((".bias", ".scale", "ssm_a", "ssm_d")) else f"{short}.weight"
        writer.add_tensor(full, _values(rng, short, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _values(rng: np.random.Generator, short: str, shape: tuple[int, ...]) -> np.ndarray:
    """Seeded weights that keep activations near 1; factors of RoPE above 1, decays below 0."""
    x = rng.standard_normal(shape).astype(np.float32)
    if "rope_f" in short:
        return 1 + np.abs(x)
    if short.endswith("ssm_a"):
        return -np.abs(x)
    if short.endswith("bias"):
        return x * np.float32(0.25)
    if "norm" in short or short.endswith("ssm_d"):
        return 1 + np.float32(0.25) * x
    return x * np.float32(0.5 if len(shape) == 1 or short == "token_embd" else shape[-1] ** -0.5)
