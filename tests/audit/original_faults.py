"""Conversion faults, a row each: what a converter does wrong to a Made, and the kinds under which it may be named.

plant gives the tensor or key that it changed, or None where the family has nothing of the kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.audit.original_families import EXPERTS, HEADS, KV, LAYERS, Array, Made, pairs

Plant = Callable[[Made, np.random.Generator], str | None]
NORM_FAMILIES, PERMUTED = ("gemma2", "gemma3"), ("llama", "granite")


@dataclass(frozen=True)
class Fault:
    """plant changes a Made; kinds: how the audit may call it."""

    name: str
    plant: Plant
    kinds: tuple[str, ...]


def choose(made: Made, random: np.random.Generator, pattern: str, families: tuple[str, ...] = ()) -> str | None:
    names = [n for n in made.tensors if re.search(pattern, n)]
    return str(random.choice(names)) if names and (not families or made.family in families) else None


def change(pattern: str, how: Callable[[Array, np.random.Generator], Array], families: tuple[str, ...] = ()) -> Plant:
    """A plant that changes the values of one tensor."""
    def plant(made: Made, random: np.random.Generator) -> str | None:
        name = choose(made, random, pattern, families)
        if name is None:
            return None
        before = made.tensors[name]
        made.tensors[name] = np.ascontiguousarray(how(before.copy(), random), np.float32)
        same = made.tensors[name].shape == before.shape and np.array_equal(made.tensors[name], before)
        return None if same else name
    return plant


def heads_of(rows: Array) -> int:
    return HEADS if len(rows) == HEADS * 16 else KV


def halves(rows: Array) -> Array:
    """The inverse of pairs."""
    head = rows.reshape(heads_of(rows), -1, 2, rows.size // len(rows))
    return np.concatenate([head[:, :, 0], head[:, :, 1]], 1).reshape(rows.shape)


def exchange(one: str, other: str, experts: bool = False) -> Plant:
    """Two tensors of one layer under each other's names."""
    def plant(made: Made, random: np.random.Generator) -> str | None:
        name = choose(made, random, rf"\.{one}(_exps)?\.weight")
        if name is None:
            return None
        there = name.replace(one, other)
        if there not in made.tensors or made.tensors[there].shape != made.tensors[name].shape:
            return None
        made.tensors[name], made.tensors[there] = made.tensors[there], made.tensors[name]
        return name
    return plant


def from_layer(made: Made, random: np.random.Generator) -> str | None:
    name = choose(made, random, r"blk\.\d+\..*weight")
    if name is None:
        return None
    layer = int(name.split(".")[1])
    other = re.sub(r"blk\.\d+", f"blk.{(layer + 1) % LAYERS}", name)
    made.tensors[name] = made.tensors[other].copy()
    return name


def drop(pattern: str) -> Plant:
    def plant(made: Made, random: np.random.Generator) -> str | None:
        name = choose(made, random, pattern)
        if name is not None:
            del made.tensors[name]
        return name
    return plant


def extra(made: Made, random: np.random.Generator) -> str | None:
    name = f"blk.{random.integers(LAYERS)}.ffn_extra.weight"
    made.tensors[name] = random.standard_normal((8, 8)).astype(np.float32)
    return name


def scale_block(values: Array, random: np.random.Generator) -> Array:
    flat = values.reshape(-1, 32) if values.size % 32 == 0 else values.reshape(1, -1)
    flat[random.integers(len(flat))] *= 64
    return flat.reshape(values.shape)


def swap_rows(values: Array, random: np.random.Generator) -> Array:
    n = len(values) // 4
    at = int(random.integers(2)) * n
    values[at:at + n], values[at + 2 * n:at + 3 * n] = values[at + 2 * n:at + 3 * n].copy(), values[at:at + n].copy()
    return values


def zero_rows(values: Array, random: np.random.Generator) -> Array:
    values[int(random.integers(1, len(values) // 2)):] = 0
    return values


def swap_experts(values: Array, random: np.random.Generator) -> Array:
    i, j = random.choice(EXPERTS, 2, replace=False)
    values[[i, j]] = values[[j, i]]
    return values


def low_rank(values: Array, random: np.random.Generator) -> Array:
    up, down = random.standard_normal((len(values), 2)), random.standard_normal((2, values.shape[1]))
    return values + (0.3 * values.std() * up @ down).astype(np.float32)


def adapter(times: float) -> Plant:
    """An adapter beside the original, merged into its file so many times."""
    def plant(made: Made, random: np.random.Generator) -> str | None:
        name = choose(made, random, r"ffn_down\.weight", ("llama", "granite", "qwen2", "qwen3", "gemma2", "gemma3"))
        if name is None:
            return None
        theirs = f"model.layers.{name.split('.')[1]}.mlp.down_proj"
        up, down = (random.standard_normal(s).astype(np.float32) * 0.1 for s in ((64, 4), (4, 96)))
        root = f"base_model.model.{theirs}"
        made.adapter = {f"{root}.lora_A.weight": down, f"{root}.lora_B.weight": up}
        made.tensors[name] = made.tensors[name] + times * 2 * up @ down
        return name
    return plant


def key(suffix: str, how: Callable[[object], object]) -> Plant:
    def plant(made: Made, random: np.random.Generator) -> str | None:
        name = f"{made.arch}.{suffix}"
        if not made.keys.get(name) or (made.family, suffix) == ("mamba2", "context_length"):  # its config has none
            return None
        value = how(made.keys[name])
        if value is None:
            del made.keys[name]
        else:
            made.keys[name] = value
        return name
    return plant


def token(name: str, how: Callable[[object], object]) -> Plant:
    def plant(made: Made, random: np.random.Generator) -> str | None:
        full = f"tokenizer.{name}"
        value = how(made.tokens[full])
        if value is None:
            del made.tokens[full]
        else:
            made.tokens[full] = value
        return full
    return plant


def other_head(made: Made, random: np.random.Generator) -> str | None:
    """A head of its own where the original ties it to the embedding."""
    if "output.weight" in made.tensors:
        return None
    made.tensors["output.weight"] = made.tensors["token_embd.weight"][::-1].copy()
    return "output.weight"


MATRIX = r"(attn_\w+|ffn_\w+|ssm_in|ssm_out)\.weight$(?<!norm\.weight)"
FAULTS = (
    Fault("norm not folded", change(r"norm\.weight", lambda v, r: v - 1, NORM_FAMILIES), ("norm + 1 not folded",)),
    Fault("norm folded twice", change(r"norm\.weight", lambda v, r: v + 1, NORM_FAMILIES), ("norm + 1 folded twice",)),
    Fault("norm + 1 without cause", change(r"norm\.weight", lambda v, r: v + 1, (
        "llama", "granite", "qwen2", "qwen3", "qwen3moe", "phi3", "gpt2", "gptneox")), ("norm + 1 without cause",)),
    Fault("q or k not permuted", change(r"attn_[qk]\.weight", lambda v, r: halves(v), PERMUTED), ("not permuted",)),
    Fault("q or k permuted twice", change(r"attn_[qk]\.weight", lambda v, r: pairs(v, heads_of(v)), PERMUTED),
          ("permuted twice",)),
    Fault("k by the query heads", change(r"attn_k\.weight", lambda v, r: pairs(halves(v), HEADS), PERMUTED),
          ("permuted by other heads",)),
    Fault("permuted without cause", change(r"attn_[qk]\.(weight|bias)", lambda v, r: pairs(v, heads_of(v)), (
        "qwen2", "qwen3", "gemma2", "gemma3", "qwen3moe")), ("permuted without cause",)),
    Fault("gate and up exchanged", exchange("ffn_gate", "ffn_up"), ("gate and up exchanged",)),
    Fault("k and v exchanged", exchange("attn_k", "attn_v"), ("exchanged",)),
    Fault("bias dropped", drop(r"\.bias$"), ("bias dropped",)),
    Fault("bias zero", change(r"\.bias$", lambda v, r: v * 0), ("zeros",)),
    Fault("another layer's", from_layer, ("another layer's",)),
    Fault("tensor missing", drop(r"blk.*\.weight$"), ("missing tensor",)),
    Fault("tensor extra", extra, ("extra tensor",)),
    Fault("scaled", change(MATRIX, lambda v, r: v * float(r.choice([0.125, 0.5, 2.0, 8.0]))), ("scaled",)),
    Fault("sign", change(MATRIX, lambda v, r: -v), ("sign", "scaled")),
    Fault("transposed", change(r"attn_output\.weight", lambda v, r: v.T), ("transposed",)),
    Fault("Conv1D not turned", change(r"(attn_qkv|ffn_up|ffn_down)\.weight", lambda v, r: v.T, ("gpt2",)),
          ("transposed",)),
    Fault("rows exchanged", change(MATRIX, swap_rows), ("reordered", "rope order", "shifted")),
    Fault("rows zero", change(r"(ffn_\w+|attn_output|ssm_out)\.weight$(?<!norm\.weight)", zero_rows), ("zeros",)),
    Fault("block scaled", change(r"(ffn_\w+|attn_output|ssm_out)\.weight$(?<!norm\.weight)", scale_block), ("scaled",)),
    Fault("experts exchanged", change(r"exps", swap_experts), ("reordered",)),
    Fault("fused order", change(r"attn_qkv\.(weight|bias)", lambda v, r: v.reshape(3, HEADS, 16, -1).swapaxes(
        0, 1).reshape(v.shape), ("gptneox",)), ("fused order",)),
    Fault("low-rank merge missed", change(r"ffn_(up|down)\.weight$", low_rank), ("merge",)),
    Fault("merge without effect", adapter(0.0), ("merge had no effect",)),
    Fault("merged twice", adapter(2.0), ("merged twice",)),
    Fault("A_log without sign", change(r"ssm_a", lambda v, r: -v), ("sign",)),
    Fault("A_log as it is", change(r"ssm_a", lambda v, r: np.log(-v)), ("exp not taken",)),
    Fault("kernel reversed", change(r"ssm_conv1d\.weight", lambda v, r: v[:, ::-1]), ("kernel reversed",)),
    Fault("head not tied", other_head, ("reordered", "size", "scaled")),
    Fault("vocabulary shifted", change(r"token_embd|output\.weight", lambda v, r: np.roll(v, 1, 0)), ("shifted",)),
    Fault("NaN", change(r"ffn_\w+\.weight$(?<!norm\.weight)", lambda v, r: np.where(
        np.arange(v.shape[-1]) == 5, np.nan, v)), ("not finite",)),
    Fault("wrong rope base", key("rope.freq_base", lambda v: 10000.0), ("key",)),
    Fault("rope base missing", key("rope.freq_base", lambda v: None), ("missing key",)),
    Fault("wrong eps", key("attention.layer_norm_rms_epsilon", lambda v: 1e-6), ("key",)),
    Fault("wrong key heads", key("attention.head_count_kv", lambda v: HEADS), ("key",)),
    Fault("wrong window", key("attention.sliding_window", lambda v: 4096), ("key",)),
    Fault("wrong soft cap", key("final_logit_softcapping", lambda v: 50.0), ("key",)),
    Fault("wrong scale", key("residual_scale", lambda v: 1.0), ("key",)),
    Fault("wrong experts used", key("expert_used_count", lambda v: 4), ("key",)),
    Fault("wrong context", key("context_length", lambda v: 2048), ("key",)),
    Fault("wrong eos", token("ggml.eos_token_id", lambda v: 7), ("special id",)),
    Fault("tokens shifted", token("ggml.tokens", lambda v: [*v[1:], v[0]]), ("tokens",)),
    Fault("template changed", token("chat_template", lambda v: v + " "), ("chat template",)),
    Fault("template lost", token("chat_template", lambda v: None), ("chat template",)),
)
