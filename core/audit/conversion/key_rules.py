"""Which key of a GGUF file says what of config.json: one table, for every family. How they are held: keys.py.

A rule gives what the configuration asks for, or None where it says nothing. Source: the configurations of transformers
5.24 beside the keys that ggml's loader reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

# model_type without _text -> architecture names in GGUF; where none stands here, nothing is said
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (
        "llama", "qwen2", "qwen3", "smollm3", "seed_oss", "ernie4_5", "arcee", "apertus", "phi3", "chatglm", "granite",
        "minicpm", "gemma", "gemma2", "gemma3", "gemma4", "glm4", "olmo2", "exaone4", "stablelm", "olmo", "cohere2",
        "starcoder2", "gpt2", "bloom", "falcon", "nemotron", "olmoe", "granitemoe", "dots1", "afmoe", "llama4",
        "mistral4", "lfm2", "mamba", "mamba2", "jamba", "mistral3")},
    "mistral": ("llama",), "mixtral": ("llama",), "ministral3": ("mistral3",), "qwen2_moe": ("qwen2moe",),
    "qwen3_moe": ("qwen3moe",), "qwen3_next": ("qwen3next",), "qwen3_5": ("qwen35",), "qwen3_5_moe": ("qwen35moe",),
    "qwen3_vl": ("qwen3vl",), "qwen3_vl_moe": ("qwen3vlmoe",), "gpt_oss": ("gpt-oss",), "gpt_neox": ("gptneox",),
    "deepseek_v2": ("deepseek2",), "deepseek_v3": ("deepseek2",), "kimi_k2": ("deepseek2",), "glm4_moe": ("glm4moe",),
    "granitemoehybrid": ("granitehybrid",), "granitemoeshared": ("granitemoe",), "phi": ("phi2",),
    "gpt_bigcode": ("starcoder",), "cohere": ("command-r",), "falcon_h1": ("falcon-h1",), "olmo3": ("olmo2",),
    "hunyuan_v1_dense": ("hunyuan-dense",), "hunyuan_v1_moe": ("hunyuan-moe",), "minimax_m2": ("minimax-m2",),
    "nemotron_h": ("nemotron_h", "nemotron_h_moe"), "lfm2_moe": ("lfm2moe",), "exaone_moe": ("exaone-moe",),
    "ernie4_5_moe": ("ernie4_5-moe",),
}


@dataclass(frozen=True, slots=True)
class KeyRule:
    """One key, without its architecture. says: the values that fit the configuration, None where it says nothing.

    default: what an engine takes where the file lacks the key; REQUIRED: it must be there; UNSAID: its absence says
    nothing. archs, but_archs: where it holds.
    """

    key: str
    says: Callable[[Config], object]
    default: object = None
    archs: tuple[str, ...] = ()
    but_archs: tuple[str, ...] = ()


REQUIRED, UNSAID = "required", "unsaid"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Several values that all fit."""

    values: tuple[object, ...]


def first(*names: str) -> Callable[[Config], object]:
    """The first of these names that the configuration has, as it stands there."""
    return lambda c: next((c[n] for n in names if c.get(n) is not None), None)


def rope(c: Config, name: str, of: str = "full_attention") -> object:
    """A parameter of RoPE: where layers differ, of full attention (or of sliding_attention)."""
    found = c.get("rope_parameters")
    found = found if isinstance(found, dict) else {}
    part = found.get(of)
    if isinstance(part, dict):
        return part.get(name)
    if of != "full_attention":
        return None
    if name == "rope_theta" and found.get("alpha") is not None:
        return None  # Hunyuan's base is scaled by the converter
    said = found.get(name)
    return c.get(name) if said is None and name in ("rope_theta", "partial_rotary_factor") else said


def _scaling(c: Config) -> str | None:
    return {"yarn": "yarn", "linear": "linear", "default": "none", "None": "none"}.get(str(rope(c, "rope_type")))


def _scaled(name: str, *kinds: str) -> Callable[[Config], object]:
    return lambda c: rope(c, name) if rope(c, "rope_type") in kinds else None


def _product(*names: str) -> Callable[[Config], object]:
    def multiply(c: Config) -> object:
        said = [c.get(n) for n in names]
        return None if not all(isinstance(v, int | float) for v in said) else _times(said)
    return multiply


def _times(values: list[Any]) -> Any:  # noqa: ANN401 (int or float, as they are)
    found: Any = 1
    for value in values:
        found = found * value
    return found


def _layers(c: Config) -> object:
    n, more = first("num_hidden_layers", "n_layer", "num_layers")(c), c.get("num_nextn_predict_layers")
    more = more if isinstance(more, int) else c.get("mtp_num_hidden_layers")
    return AnyOf((n, n + more)) if isinstance(n, int) and isinstance(more, int) else n


def _head_dim(c: Config) -> object:
    if c.get("kv_lora_rank"):
        return None
    said, width, n = c.get("head_dim"), first("hidden_size", "n_embd")(c), first("num_attention_heads", "n_head")(c)
    return said or (width // n if isinstance(width, int) and isinstance(n, int) and n else None)


def _rope_dim(c: Config) -> object:
    if c.get("kv_lora_rank"):
        return c.get("qk_rope_head_dim")
    width = _head_dim(c)
    part = rope(c, "partial_rotary_factor") or c.get("rotary_pct") or 1.0
    if isinstance(c.get("rotary_dim"), int):
        return c["rotary_dim"]
    return int(width * part) if isinstance(width, int) and isinstance(part, int | float) else None


def _kv_heads(c: Config) -> object:
    if c.get("kv_lora_rank"):
        return AnyOf((1, c.get("num_attention_heads"), c.get("num_key_value_heads")))
    if c.get("model_type") == "falcon":
        n = c.get("num_attention_heads")
        return c.get("num_kv_heads") if c.get("new_decoder_architecture") else 1 if c.get("multi_query", True) else n
    return first("num_key_value_heads", "num_attention_heads", "n_head")(c)


def _mla(c: Config, *names: str) -> object:
    said = [n for name in names if isinstance(n := c.get(name), int)]
    return sum(said) if len(said) == len(names) else None


def _ffn(c: Config) -> object:
    said = first("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")(c)
    width = first("hidden_size", "n_embd")(c)
    if isinstance(said, int) or not isinstance(width, int):
        return said if isinstance(said, int) else None
    return 4 * width if c.get("model_type") in ("gpt2", "bloom", "falcon", "gpt_bigcode") else None


def _window(c: Config) -> object:
    return 0 if c.get("use_sliding_window") is False else c.get("sliding_window")


def _sections(c: Config) -> object:
    said = rope(c, "mrope_section")
    return [*said, *[0] * (4 - len(said))] if isinstance(said, list) and len(said) <= 4 else None


def _kinds(*words: str) -> Callable[[Config], object]:
    def flags(c: Config) -> object:
        said = c.get("layer_types")
        return [kind in words for kind in said] if isinstance(said, list) and any(k in words for k in said) else None
    return flags


GATES = {"softmax": 1, "sigmoid": 2}
EPS = first("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon", "layernorm_epsilon")
MLA = ("deepseek2", "mistral4")
GRANITES = ("granite", "granitemoe", "granitehybrid")
DELTA = ("qwen3next", "qwen35", "qwen35moe")
MIXED_FFN = ("lfm2", "lfm2moe", "llama4", "nemotron_h", "nemotron_h_moe", "gemma3n", "gemma4", "granitehybrid",
             "ernie4_5-moe", "afmoe")
KEY_RULES = (
    KeyRule("context_length", first("max_position_embeddings", "n_positions", "seq_length", "n_ctx"), UNSAID,
            but_archs=("mamba", "mamba2", "jamba", "falcon", "bloom")),
    KeyRule("embedding_length", first("hidden_size", "n_embd", "d_model"), REQUIRED),
    KeyRule("block_count", _layers, REQUIRED),
    KeyRule("feed_forward_length", _ffn, UNSAID, but_archs=MIXED_FFN),
    KeyRule("attention.head_count", first("num_attention_heads", "n_head"), REQUIRED, but_archs=("mamba", "mamba2")),
    KeyRule("attention.head_count_kv", _kv_heads, UNSAID, but_archs=("mamba", "mamba2", "gemma4")),
    KeyRule("attention.key_length", _head_dim, UNSAID, but_archs=("gemma4", *MLA, "mamba", "mamba2")),
    KeyRule("attention.value_length", _head_dim, UNSAID, but_archs=("gemma4", *MLA, "mamba", "mamba2")),
    KeyRule("attention.key_length", lambda c: AnyOf((_mla(c, "kv_lora_rank", "qk_rope_head_dim"), _mla(
        c, "qk_nope_head_dim", "qk_rope_head_dim"))), UNSAID, MLA),
    KeyRule("attention.value_length", lambda c: AnyOf((c.get("kv_lora_rank"), c.get("v_head_dim"))), UNSAID, MLA),
    KeyRule("attention.key_length_mla", lambda c: _mla(c, "qk_nope_head_dim", "qk_rope_head_dim"), UNSAID, MLA),
    KeyRule("attention.value_length_mla", first("v_head_dim"), UNSAID, MLA),
    KeyRule("attention.q_lora_rank", first("q_lora_rank"), UNSAID, MLA),
    KeyRule("attention.kv_lora_rank", first("kv_lora_rank"), REQUIRED, MLA),
    KeyRule("attention.layer_norm_rms_epsilon", EPS, UNSAID),
    KeyRule("attention.layer_norm_epsilon", EPS, UNSAID),
    KeyRule("attention.causal", lambda c: True, True),
    KeyRule("attention.sliding_window", _window, 0),
    KeyRule("attn_logit_softcapping", first("attn_logit_softcapping"), 50.0, ("gemma2",)),
    KeyRule("final_logit_softcapping", first("final_logit_softcapping"), 30.0, ("gemma2",)),
    KeyRule("final_logit_softcapping", lambda c: c.get("final_logit_softcapping") or 0.0, 0.0, ("gemma3", "gemma4")),
    KeyRule("attention.clamp_kqv", first("clip_qkv"), 0.0, ("olmo",)),
    KeyRule("attention.shared_kv_layers", first("num_kv_shared_layers"), 0),
    KeyRule("embedding_length_per_layer_input", first("hidden_size_per_layer_input"), 0, ("gemma4",)),
    KeyRule("use_parallel_residual", first("use_parallel_residual"), UNSAID, ("gptneox",)),
    KeyRule("rope.freq_base", lambda c: rope(c, "rope_theta"), 10000.0),
    KeyRule("rope.freq_base_swa", lambda c: rope(c, "rope_theta", "sliding_attention") or c.get("rope_local_base_freq"),
            10000.0, ("gemma3", "gemma4")),
    KeyRule("rope.dimension_count", _rope_dim, UNSAID, but_archs=("gemma4", "mamba", "mamba2")),
    KeyRule("rope.dimension_sections", _sections, UNSAID),
    KeyRule("rope.scaling.type", _scaling, "none"),
    KeyRule("rope.scaling.factor", _scaled("factor", "yarn", "linear"), 1.0),
    KeyRule("rope.scaling.original_context_length", _scaled("original_max_position_embeddings", "yarn"), UNSAID),
    KeyRule("rope.scaling.yarn_beta_fast", _scaled("beta_fast", "yarn"), 32.0),
    KeyRule("rope.scaling.yarn_beta_slow", _scaled("beta_slow", "yarn"), 1.0),
    KeyRule("rope.scaling.yarn_log_multiplier", lambda c: _times([0.1, rope(c, "mscale_all_dim")]) if isinstance(
        rope(c, "mscale_all_dim"), int | float) and rope(c, "rope_type") == "yarn" else None, UNSAID, ("deepseek2",)),
    KeyRule("logit_scale", first("logits_scaling"), 1.0, GRANITES),
    KeyRule("embedding_scale", first("embedding_multiplier"), 1.0, GRANITES),
    KeyRule("residual_scale", first("residual_multiplier"), 1.0, GRANITES),
    KeyRule("attention.scale", first("attention_multiplier"), UNSAID, GRANITES),
    KeyRule("logit_scale", first("logit_scale"), REQUIRED, ("command-r", "cohere2")),
    KeyRule("expert_count", first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 0),
    KeyRule("expert_used_count", first("num_experts_per_tok", "num_experts_per_token", "moe_k"), 0),
    KeyRule("expert_feed_forward_length", first("moe_intermediate_size"), UNSAID, but_archs=("llama4", "hunyuan-moe")),
    KeyRule("expert_shared_count", first("n_shared_experts", "num_shared_experts"), UNSAID, but_archs=("hunyuan-moe",)),
    KeyRule("expert_shared_feed_forward_length", first("shared_expert_intermediate_size", "shared_intermediate_size"),
            UNSAID),
    KeyRule("expert_weights_scale", first("routed_scaling_factor"), 1.0, ("deepseek2", "glm4moe", "dots1")),
    KeyRule("expert_weights_norm", first("norm_topk_prob"), False, ("deepseek2", "glm4moe", "dots1")),
    KeyRule("expert_gating_func", lambda c: GATES.get(c.get("scoring_func", "")), UNSAID),
    KeyRule("expert_group_count", first("n_group"), UNSAID),
    KeyRule("expert_group_used_count", first("topk_group"), UNSAID),
    KeyRule("leading_dense_block_count", first("first_k_dense_replace"), 0, ("deepseek2", "glm4moe", "dots1")),
    KeyRule("ssm.conv_kernel", first("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel"), UNSAID),
    KeyRule("ssm.state_size", first("linear_key_head_dim", "mamba_d_state", "ssm_state_size", "state_size"), UNSAID),
    KeyRule("ssm.group_count", first("linear_num_key_heads", "mamba_n_groups", "n_groups"), UNSAID,
            but_archs=("mamba", "jamba")),
    KeyRule("ssm.time_step_rank", first("linear_num_value_heads"), UNSAID, DELTA),
    KeyRule("ssm.inner_size", _product("linear_value_head_dim", "linear_num_value_heads"), UNSAID, DELTA),
    KeyRule("full_attention_interval", first("full_attention_interval"), UNSAID, DELTA),
    KeyRule("attention.recurrent_layers", _kinds("linear_attention"), UNSAID, DELTA),
    KeyRule("shortconv.l_cache", first("conv_L_cache"), UNSAID, ("lfm2", "lfm2moe")),
    KeyRule("vocab_size", first("vocab_size"), UNSAID, but_archs=("mamba", "mamba2")),
)
