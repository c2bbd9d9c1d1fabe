"""Tiny originals of ten families and a converter of the tests' own: plain functions, nothing of the product's tables.

A Made has both sides: the original's tensors and config.json, and the GGUF's tensors and keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.builders import add_key

D, HEADS, KV, HEAD, F, VOCAB, LAYERS, EXPERTS = 64, 4, 2, 16, 96, 96, 3, 4
Array = np.ndarray


@dataclass
class Made:
    """One model on both sides; tests change either. adapter: tensors of an adapter beside the original."""

    family: str
    arch: str
    config: dict[str, Any]
    hf: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Array] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)


class Maker:
    """Draws an original's tensors and files away what the converter makes of them."""

    def __init__(self, made: Made, seed: int) -> None:
        self.made, self.random = made, np.random.default_rng(seed)

    def draw(self, name: str, *shape: int, about: float = 0.0) -> Array:
        values = (self.random.standard_normal(shape) * (0.05 if len(shape) > 1 else 0.2) + about).astype(np.float32)
        self.made.hf[name] = values
        return values

    def put(self, name: str, values: Array) -> None:
        self.made.tensors[name] = np.ascontiguousarray(values, np.float32)

    def both(self, theirs: str, ours: str, *shape: int, about: float = 0.0) -> None:
        self.put(ours, self.draw(theirs, *shape, about=about))


def pairs(rows: Array, n_head: int) -> Array:
    """Rows of each head from two halves to neighbours."""
    head = rows.reshape(n_head, 2, len(rows) // n_head // 2, -1)
    return np.stack([head[:, 0], head[:, 1]], 2).reshape(rows.shape)


def base_config(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV, "head_dim": HEAD, "intermediate_size": F, "vocab_size": VOCAB,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": 2, **more}


def base_keys(arch: str, **more: Any) -> dict[str, Any]:
    said = {"block_count": LAYERS, "context_length": 512, "embedding_length": D, "feed_forward_length": F,
            "attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.key_length": HEAD,
            "attention.value_length": HEAD, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 50000.0, **more}
    return {f"{arch}.{k}": v for k, v in said.items() if v is not None}


def llama_like(arch: str, kind: str, bias: bool = False, norm: int = 0, permute: bool = False, experts: bool = False,
               tied: bool = False, sandwich: bool = False, qk_norm: bool = False) -> Callable[[int], Made]:
    """Families of q_proj, k_proj, v_proj and a gate. norm: what the converter adds to norms."""
    def make(seed: int) -> Made:
        made = Made(arch, arch, base_config(kind, tie_word_embeddings=tied), keys=base_keys(arch))
        m = Maker(made, seed)
        for i in range(LAYERS):
            h, b = f"model.layers.{i}.", f"blk.{i}."
            norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
            if sandwich:
                norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
                         "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
            for theirs, ours in norms.items():
                m.put(f"{b}{ours}.weight", m.draw(f"{h}{theirs}.weight", D, about=1 - norm) + norm)
            for letter, n in (("q", HEADS), ("k", KV), ("v", KV)):
                for suffix, cols in (("weight", (D,)), ("bias", ()))[:1 + bias]:
                    rows = m.draw(f"{h}self_attn.{letter}_proj.{suffix}", n * HEAD, *cols)
                    m.put(f"{b}attn_{letter}.{suffix}", pairs(rows, n) if permute and letter != "v" else rows)
                if qk_norm and letter != "v":
                    m.put(f"{b}attn_{letter}_norm.weight",
                          m.draw(f"{h}self_attn.{letter}_norm.weight", HEAD, about=1 - norm) + norm)
            m.both(f"{h}self_attn.o_proj.weight", f"{b}attn_output.weight", D, HEADS * HEAD)
            feed_forward(m, h, b, experts)
        m.both("model.embed_tokens.weight", "token_embd.weight", VOCAB, D)
        m.put("output_norm.weight", m.draw("model.norm.weight", D, about=1 - norm) + norm)
        if not tied:
            m.both("lm_head.weight", "output.weight", VOCAB, D)
        if experts:
            made.config |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
            made.keys |= {f"{arch}.expert_count": EXPERTS, f"{arch}.expert_used_count": 2,
                          f"{arch}.expert_feed_forward_length": 32}
        return made
    return make


def feed_forward(m: Maker, h: str, b: str, experts: bool) -> None:
    for role, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        if not experts:
            m.both(f"{h}mlp.{role}_proj.weight", f"{b}ffn_{role}.weight", *shape)
            continue
        small = (32, D) if role != "down" else (D, 32)
        each = [m.draw(f"{h}mlp.experts.{e}.{role}_proj.weight", *small) for e in range(EXPERTS)]
        m.put(f"{b}ffn_{role}_exps.weight", np.stack(each))
    if experts:
        m.both(f"{h}mlp.gate.weight", f"{b}ffn_gate_inp.weight", EXPERTS, D)


def gpt2(seed: int) -> Made:
    """Conv1D keeps (in, out); one joined qkv."""
    config = {"model_type": "gpt2", "n_embd": D, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 512,
              "n_inner": None, "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    keys = {"gpt2.block_count": LAYERS, "gpt2.context_length": 512, "gpt2.embedding_length": D,
            "gpt2.feed_forward_length": 4 * D, "gpt2.attention.head_count": HEADS,
            "gpt2.attention.layer_norm_epsilon": 1e-5}
    made = Made("gpt2", "gpt2", config, keys=keys)
    m = Maker(made, seed)
    for i in range(LAYERS):
        h, b = f"transformer.h.{i}.", f"blk.{i}."
        for theirs, ours, n_in, n_out in (("attn.c_attn", "attn_qkv", D, 3 * D), ("attn.c_proj", "attn_output", D, D),
                                          ("mlp.c_fc", "ffn_up", D, 4 * D), ("mlp.c_proj", "ffn_down", 4 * D, D)):
            m.put(f"{b}{ours}.weight", m.draw(f"{h}{theirs}.weight", n_in, n_out).T)
            m.both(f"{h}{theirs}.bias", f"{b}{ours}.bias", n_out)
        for theirs, ours in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm")):
            m.both(f"{h}{theirs}.weight", f"{b}{ours}.weight", D, about=1)
            m.both(f"{h}{theirs}.bias", f"{b}{ours}.bias", D)
    m.both("transformer.wte.weight", "token_embd.weight", VOCAB, D)
    m.both("transformer.wpe.weight", "position_embd.weight", 512, D)
    m.both("transformer.ln_f.weight", "output_norm.weight", D, about=1)
    m.both("transformer.ln_f.bias", "output_norm.bias", D)
    return made


def gptneox(seed: int) -> Made:
    """A joined qkv that stands head by head, and is stored as all q, all k, all v."""
    config = base_config("gpt_neox", layer_norm_eps=1e-5, rotary_pct=0.25, use_parallel_residual=True)
    for name in ("rms_norm_eps", "head_dim", "num_key_value_heads"):
        del config[name]
    keys = base_keys("gptneox", **{"attention.layer_norm_rms_epsilon": None, "attention.head_count_kv": None,
                                   "attention.key_length": None, "attention.value_length": None,
                                   "attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4,
                                   "use_parallel_residual": True})
    made = Made("gptneox", "gptneox", config, keys=keys)
    m = Maker(made, seed)
    for i in range(LAYERS):
        h, b = f"gpt_neox.layers.{i}.", f"blk.{i}."
        rows = m.draw(f"{h}attention.query_key_value.weight", 3 * D, D)
        m.put(f"{b}attn_qkv.weight", rows.reshape(HEADS, 3, HEAD, D).swapaxes(0, 1).reshape(3 * D, D))
        rows = m.draw(f"{h}attention.query_key_value.bias", 3 * D)
        m.put(f"{b}attn_qkv.bias", rows.reshape(HEADS, 3, HEAD).swapaxes(0, 1).reshape(-1))
        for theirs, ours, shape in (("attention.dense", "attn_output", (D, D)), ("mlp.dense_h_to_4h", "ffn_up", (F, D)),
                                    ("mlp.dense_4h_to_h", "ffn_down", (D, F))):
            m.both(f"{h}{theirs}.weight", f"{b}{ours}.weight", *shape)
            m.both(f"{h}{theirs}.bias", f"{b}{ours}.bias", shape[0])
        for theirs, ours in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            m.both(f"{h}{theirs}.weight", f"{b}{ours}.weight", D, about=1)
            m.both(f"{h}{theirs}.bias", f"{b}{ours}.bias", D)
    m.both("gpt_neox.embed_in.weight", "token_embd.weight", VOCAB, D)
    m.both("gpt_neox.final_layer_norm.weight", "output_norm.weight", D, about=1)
    m.both("gpt_neox.final_layer_norm.bias", "output_norm.bias", D)
    m.both("embed_out.weight", "output.weight", VOCAB, D)
    return made


def phi3(seed: int) -> Made:
    """Joined qkv and joined gate and up, both stored as they are."""
    made = Made("phi3", "phi3", base_config("phi3"), keys=base_keys("phi3", **{"rope.dimension_count": HEAD}))
    m = Maker(made, seed)
    for i in range(LAYERS):
        h, b = f"model.layers.{i}.", f"blk.{i}."
        m.both(f"{h}self_attn.qkv_proj.weight", f"{b}attn_qkv.weight", (HEADS + 2 * KV) * HEAD, D)
        m.both(f"{h}self_attn.o_proj.weight", f"{b}attn_output.weight", D, D)
        m.both(f"{h}mlp.gate_up_proj.weight", f"{b}ffn_up.weight", 2 * F, D)
        m.both(f"{h}mlp.down_proj.weight", f"{b}ffn_down.weight", D, F)
        m.both(f"{h}input_layernorm.weight", f"{b}attn_norm.weight", D, about=1)
        m.both(f"{h}post_attention_layernorm.weight", f"{b}ffn_norm.weight", D, about=1)
    m.both("model.embed_tokens.weight", "token_embd.weight", VOCAB, D)
    m.both("model.norm.weight", "output_norm.weight", D, about=1)
    m.both("lm_head.weight", "output.weight", VOCAB, D)
    return made


def mamba2(seed: int) -> Made:
    """A recurrent family: A_log, a convolution of one channel each, a head per dt."""
    inner, state, heads = 2 * D, 16, 8
    config = {"model_type": "mamba2", "hidden_size": D, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
              "layer_norm_epsilon": 1e-5, "state_size": state, "conv_kernel": 4, "num_heads": heads, "n_groups": 1,
              "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    keys = {f"mamba2.{k}": v for k, v in {
        "block_count": LAYERS, "context_length": 512, "embedding_length": D, "feed_forward_length": 0,
        "attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5, "ssm.state_size": state,
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.time_step_rank": heads, "ssm.group_count": 1}.items()}
    made = Made("mamba2", "mamba2", config, keys=keys)
    m = Maker(made, seed)
    for i in range(LAYERS):
        h, b = f"backbone.layers.{i}.", f"blk.{i}."
        m.both(f"{h}norm.weight", f"{b}attn_norm.weight", D, about=1)
        m.put(f"{b}ssm_a", -np.exp(m.draw(f"{h}mixer.A_log", heads, about=1)).reshape(heads, 1))
        m.put(f"{b}ssm_d", m.draw(f"{h}mixer.D", heads, about=1).reshape(heads, 1))
        m.both(f"{h}mixer.dt_bias", f"{b}ssm_dt.bias", heads)
        m.put(f"{b}ssm_conv1d.weight", m.draw(f"{h}mixer.conv1d.weight", inner + 2 * state, 1, 4)[:, 0])
        m.both(f"{h}mixer.conv1d.bias", f"{b}ssm_conv1d.bias", inner + 2 * state)
        m.both(f"{h}mixer.in_proj.weight", f"{b}ssm_in.weight", 2 * inner + 2 * state + heads, D)
        m.both(f"{h}mixer.out_proj.weight", f"{b}ssm_out.weight", D, inner)
        m.both(f"{h}mixer.norm.weight", f"{b}ssm_norm.weight", inner, about=1)
        made.tensors[f"{b}ssm_norm.weight"] = made.tensors[f"{b}ssm_norm.weight"].reshape(1, inner)
    m.both("backbone.embeddings.weight", "token_embd.weight", VOCAB, D)
    m.both("backbone.norm_f.weight", "output_norm.weight", D, about=1)
    return made


FAMILIES: dict[str, Callable[[int], Made]] = {
    "llama": llama_like("llama", "llama", permute=True),
    "granite": llama_like("granite", "granite", permute=True, tied=True),
    "qwen2": llama_like("qwen2", "qwen2", bias=True),
    "qwen3": llama_like("qwen3", "qwen3", qk_norm=True, tied=True),
    "gemma2": llama_like("gemma2", "gemma2", norm=1, tied=True, sandwich=True),
    "gemma3": llama_like("gemma3", "gemma3_text", norm=1, tied=True, sandwich=True, qk_norm=True),
    "qwen3moe": llama_like("qwen3moe", "qwen3_moe", experts=True, qk_norm=True),
    "gpt2": gpt2, "gptneox": gptneox, "phi3": phi3, "mamba2": mamba2,
}


def make(family: str, seed: int = 0) -> Made:
    """Draw a family's model and convert it; keys that only some families have are added here."""
    made = FAMILIES[family](seed)
    if family in ("gemma2", "gemma3"):
        made.config |= {"sliding_window": 64}
        made.keys |= {f"{family}.attention.sliding_window": 64}
    if family == "gemma2":
        made.config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        made.keys |= {"gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0}
    if family == "granite":
        made.config |= {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
                        "attention_multiplier": 0.015625}
        made.keys |= {"granite.logit_scale": 8.0, "granite.embedding_scale": 12.0, "granite.residual_scale": 0.22,
                      "granite.attention.scale": 0.015625}
    words = [chr(0x100 + i) for i in range(VOCAB)]
    made.tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": words,
                   "tokenizer.ggml.token_type": [1] * VOCAB, "tokenizer.ggml.merges": [],
                   "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
                   "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m }}{% endfor %}"}
    made.documents = {
        "tokenizer.json": {"model": {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": []},
                           "added_tokens": []},
        "tokenizer_config.json": {"chat_template": made.tokens["tokenizer.chat_template"]}}
    return made


def write(made: Made, folder: Path, quant: str = "F32", shards: int = 1) -> tuple[Path, Path]:
    """Write both sides; quant is of every matrix of the GGUF whose rows it fits. Returns the file and the original."""
    return write_file(made, folder / "model.gguf", quant), write_original(made, folder / "original", shards)


def write_original(made: Made, folder: Path, shards: int = 1) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, document in {"config.json": made.config, **made.documents}.items():
        (folder / name).write_text(json.dumps(document))
    names = list(made.hf)
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    if shards == 1:
        save_file({n: np.ascontiguousarray(v) for n, v in made.hf.items()}, folder / "model.safetensors")
    else:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        for file in set(places.values()):
            save_file({n: np.ascontiguousarray(made.hf[n]) for n in names if places[n] == file}, folder / file)
    if made.adapter:
        save_file(made.adapter, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    return folder


def write_file(made: Made, path: Path, quant: str = "F32") -> Path:
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, made.arch)
    for key, value in {**made.keys, **made.tokens}.items():
        add_key(writer, key, value)
    kind = gguf.GGMLQuantizationType[quant]
    for name, values in made.tensors.items():
        fits = values.ndim > 1 and values.shape[-1] % 32 == 0 and "norm" not in name
        if quant == "F32" or not fits:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
