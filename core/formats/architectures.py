"""The architectures that this build runs, a row each: what the name in a file decides, and its names elsewhere.

It lies here, below the text's and the model's code, because .apr's metadata, the tokenizer, the forward and the
engines all read it. No file is opened here. core/model/families.py turns a row, a file's keys and its tensors into
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

QK_NORMS = ("attn_q_norm", "attn_k_norm")
QKV_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name alone decides; what a key or a tensor's presence says is no column here.

    pairing: which channels of a head RoPE turns together; GGUF keeps the rows of q and k in that order.
    pre: the tokenizer.ggml.pre of older files, which have none. apr: other words of .apr files for it.
    hf: transformers' model_type. expects: tensors of a layer that every model of the family has; a norm is needed.
    norm: rms; layer (less the mean, with a bias where the file has one); plain (layer without weights).
    act: of the gate, or of what is up where there is no gate; silu, gelu (tanh), gelu_erf, relu2, oai (clamped), xielu.
    parallel: the feed-forward reads the layer's input, and both are added at once (or key use_parallel_residual).
    sqrt_d: the embedding times sqrt(d_model). logit: multiply or divide by the key logit_scale.
    attn_scale: of the scores; head (1 / sqrt(width)), one, depth (1 / sqrt(d_model / n_head) at some depths: DEPTHS).
    reads: keys that change numbers and that it reads beside those that all read, with the value of a file without it.
    single: a layer is one mixer or one feed-forward.
    window: attention is full at every window-th layer unless sliding_window_pattern says more. window_size: where no
    key says it. window_layers: windows only in a model of that many. chunked: a window starts at its multiples.
    window_base: RoPE's base on windowed layers where no key says it; None: the other's. window_plain: RoPE is scaled on
    full layers only. log_mscale: YaRN scales no cos and sin where the file has yarn_log_multiplier.
    rope_on: layers with RoPE: all, window (not the full ones), step4 (not every fourth), finetuned (by that key).
    router: softmax, sigmoid, softmax_chosen (over the chosen ones); router_norm: their weights sum to 1. Keys override.
    weight_first: an expert's input is weighted, not its output. q_gate: attn_q has each head's query, then its gate.
    tiled: value head j reads key head j % K, else j // (V / K). beside: a dense feed-forward stands beside the experts.
    temperature: scale, length and offset by position, on layers without RoPE. mla: low-rank queries, keys, values.
    notes: keys that llama.cpp does not read for it either; they are told, not refused.
    """

    pairing: str = "halves"  # adjacent: (0,1), (2,3) ..; halves: (0, H/2), (1, H/2 + 1) ..; none
    pre: str | None = None
    apr: tuple[str, ...] = ()
    hf: tuple[str, ...] = ()
    expects: tuple[str, ...] = ()
    norm: str = "rms"
    act: str = "silu"
    parallel: bool = False
    sqrt_d: bool = False
    logit: str = "multiply"
    attn_scale: str = "head"
    qk_norm_after_rope: bool = False
    qk_l2: bool = False  # after RoPE, an RMS norm of q and k without weights, where there is RoPE
    v_norm: bool = False
    alibi: bool = False
    window: int = 0
    window_size: int = 0
    window_layers: int | None = None
    window_base: float | None = None
    window_plain: bool = False
    log_mscale: bool = False
    chunked: bool = False
    rope_on: str = "all"
    router: str = "softmax"
    router_norm: bool = False
    weight_first: bool = False
    q_gate: bool = False
    tiled: bool = False
    beside: bool = False
    temperature: tuple[float, float, float] | None = None
    mla: bool = False
    single: bool = False
    out_norm: str = "output_norm"
    reads: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_gated(self) -> bool:
        """Whether its feed-forwards have a gate."""
        return self.act in ("silu", "oai") or (self.act == "gelu" and self.norm == "rms")


POST_NORMS = ("post_attention_norm", "post_ffw_norm")
SCALES: Mapping[str, float | None] = {
    "embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0, "attention.scale": 0.0}
DEPTHS = (("gemma2", 46), ("gemma3", 62))  # the 27B models, which no key tells
UNREAD = ("attention.scale", "attention.sliding_window", "logit_scale", "attention.clamp_kqv")  # by llama.cpp's llama
ARCHS = {
    "llama": Family("adjacent", apr=("mistral", "smollm", "tinyllama"), hf=("llama", "mistral"), router_norm=True,
                    notes=UNREAD),
    "qwen2": Family("halves", pre="qwen2", apr=("qwen2.5",), hf=("qwen2",), expects=QKV_BIASES),
    "qwen3": Family("halves", pre="qwen2", hf=("qwen3",), expects=QK_NORMS),
    # pre-norm, RMS
    "mistral3": Family("adjacent", router_norm=True, log_mscale=True), "qwen3vl": Family(expects=QK_NORMS),
    "smollm3": Family("adjacent", rope_on="step4"), "seed_oss": Family(expects=QKV_BIASES),
    "ernie4_5": Family("adjacent"), "hunyuan-dense": Family(qk_norm_after_rope=True, expects=QK_NORMS),
    "arcee": Family("adjacent", act="relu2"), "apertus": Family(act="xielu", expects=QK_NORMS),
    "phi3": Family(notes=("attention.sliding_window",)), "chatglm": Family("adjacent"),
    "granite": Family("adjacent", logit="divide", reads=SCALES),
    "minicpm": Family("adjacent", logit="divide", reads={**dict.fromkeys(SCALES), "attention.scale": 0.0}),
    # windows, post norms
    "gemma": Family(act="gelu", sqrt_d=True),
    "gemma2": Family(act="gelu", sqrt_d=True, window=2, attn_scale="depth", expects=POST_NORMS,
                     reads={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma3": Family(act="gelu", sqrt_d=True, window=6, attn_scale="depth", window_base=1e4,
                     window_plain=True, expects=(*QK_NORMS, *POST_NORMS), reads={"final_logit_softcapping": 0.0}),
    "gemma4": Family(act="gelu", sqrt_d=True, window=6, window_base=1e4, window_plain=True, attn_scale="one",
                     v_norm=True, router_norm=True, beside=True, expects=POST_NORMS,
                     reads={"final_logit_softcapping": 0.0}),
    "glm4": Family("adjacent", expects=POST_NORMS),
    "olmo2": Family(window=4, window_plain=True, expects=(*QK_NORMS, *POST_NORMS)),
    "exaone4": Family(window=4, window_layers=64, rope_on="window", expects=(*QK_NORMS, *POST_NORMS)),
    # LayerNorm
    "stablelm": Family(norm="layer"), "olmo": Family("adjacent", norm="plain", reads={"attention.clamp_kqv": 0.0}),
    "command-r": Family("adjacent", norm="layer", parallel=True, reads={"logit_scale": None}),
    "cohere2": Family("adjacent", norm="layer", parallel=True, reads={"logit_scale": None}, window=4, rope_on="window"),
    "starcoder2": Family(norm="layer", act="gelu"), "starcoder": Family("none", norm="layer", act="gelu"),
    "gpt2": Family("none", norm="layer", act="gelu"), "bloom": Family("none", norm="layer", act="gelu", alibi=True),
    "gptneox": Family(norm="layer", act="gelu_erf"), "falcon": Family(norm="layer", act="gelu_erf", parallel=True),
    "phi2": Family(norm="layer", act="gelu", parallel=True), "nemotron": Family(norm="layer", act="relu2"),
    # experts
    "qwen2moe": Family(expects=QKV_BIASES), "qwen3moe": Family(router_norm=True, expects=QK_NORMS),
    "qwen3vlmoe": Family(router_norm=True, expects=QK_NORMS), "olmoe": Family(expects=QK_NORMS),
    "granitemoe": Family("adjacent", logit="divide", reads=SCALES, router_norm=True),
    "ernie4_5-moe": Family("adjacent", router_norm=True),
    "hunyuan-moe": Family(qk_norm_after_rope=True, router_norm=True, expects=QK_NORMS),
    "gpt-oss": Family(act="oai", window=2, router="softmax_chosen", expects=("attn_sinks", *QKV_BIASES)),
    "glm4moe": Family(router="sigmoid"), "dots1": Family(expects=QK_NORMS),
    "minimax-m2": Family(router="sigmoid", router_norm=True, expects=QK_NORMS),
    "exaone-moe": Family(window=4, rope_on="window", router="sigmoid", expects=QK_NORMS),
    "afmoe": Family(sqrt_d=True, window=4, rope_on="window", router="sigmoid",
                    expects=(*QK_NORMS, *POST_NORMS)),
    "llama4": Family("adjacent", router="sigmoid", weight_first=True, qk_l2=True, rope_on="step4", window=4,
                     window_size=8192, chunked=True, temperature=(0.1, 8192.0, 1.0)),
    # latents
    "deepseek2": Family("adjacent", mla=True, log_mscale=True),
    "mistral4": Family("adjacent", mla=True, log_mscale=True),
    # recurrent layers
    "qwen3next": Family(q_gate=True, router_norm=True), "qwen35": Family(q_gate=True, tiled=True),
    "qwen35moe": Family(q_gate=True, tiled=True, router_norm=True),
    "lfm2": Family(out_norm="token_embd_norm"), "lfm2moe": Family(out_norm="token_embd_norm", router_norm=True),
    "mamba": Family("none", single=True), "mamba2": Family("none", single=True),
    "jamba": Family("none"), "falcon-h1": Family(),
    "nemotron_h": Family("none", act="relu2", single=True),
    "nemotron_h_moe": Family("none", act="relu2", single=True, router="sigmoid"),
    "granitehybrid": Family("adjacent", rope_on="finetuned", logit="divide", reads=SCALES, router_norm=True),
}
REFUSED = {  # known names that this build does not run, and why
    "gemma3n": "its four residual streams (AltUp) are not built",
    "phimoe": "two rules exist for it: the model has LayerNorm and SparseMixer, llama.cpp runs RMS norms and a softmax",
    "kimi-linear": "its delta attention (KDA) is not built",
    **dict.fromkeys(("deepseek32", "glm-dsa", "dots3note", "glm5-next"), "its sparse attention (indexer) is not built"),
    **dict.fromkeys(("deepseek4", "hy_v4", "kimi-k3", "qwen4exp"), "its hyper-connections are not built"),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), "its recurrence (RWKV) is not built"),
    **dict.fromkeys(("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
                     "t5encoder", "gemma-embedding", "llada", "llada-moe", "dream", "rnd1"),
                    "its attention is not causal, so that there is no next token"),
    "t5": "it has an encoder, and cross attention",
    "clip": "it is the image or sound part of a model (mmproj); give the text model's own file",
}
APR_NAMES = {word: name for name, family in ARCHS.items() for word in family.apr}
HF_FAMILIES = {kind: family for family in ARCHS.values() for kind in family.hf}


def rope_row_order(n_row: int, head_dim: int, pairing: str) -> list[int]:
    """Return the order that turns q's or k's rows (or channels) into the other pairing's: out[i] = rows[order[i]].

    pairing: the one that the rows have now. n_row: a multiple of head_dim, which is even.
    """
    half = head_dim // 2
    if pairing == "halves":
        within = [first + second for first in range(half) for second in (0, half)]
    else:
        within = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return [head + i for head in range(0, n_row, head_dim) for i in within]
