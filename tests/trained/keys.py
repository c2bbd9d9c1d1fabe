"""Faults in keys, tensors that nothing reads, and files that are wrong by themselves. See cases.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np
from gguf import GGMLQuantizationType as T

from tests.trained.cases import (
    PROMPT,
    Case,
    Kind,
    Place,
    file_tail_zeroed,
    nan_scale,
    rows_zeroed,
    tensor_name,
    tensor_tail_zeroed,
)
from tests.trained.surgery import ModelCopy


def set_keys(model: ModelCopy, values: Mapping[str, object]) -> None:
    """Set keys of the family, named without it."""
    for key, value in values.items():
        model.set_key(f"{model.arch}.{key}", value)


def key_fault(
    kind: str, values: Mapping[str, object], place: Place, *, names: tuple[str, ...] = (), reached: bool = True,
    refused: bool = False, prompt: tuple[int, ...] = PROMPT,
) -> Case:
    """A fault of keys, named by any of them at the first stage that reads it."""
    label = ", ".join(f"{k} = {v}" for k, v in values.items())
    return Case("fault", kind, label, partial(set_keys, values=values), place, (*values, *names),
                reached=reached, refused=refused, prompt=prompt)


def eps(model: ModelCopy, rng: Random) -> Iterator[Case]:
    key = "attention.layer_norm_rms_epsilon"
    now = float(str(model.scalars[f"{model.arch}.{key}"]))
    for value in (1e-6, 1e-5, 5e-6, 2e-5, 1e-4):
        if abs(value / now - 1) > 0.01:
            yield key_fault("eps", {key: value}, (0, "attn_norm"))


def rope_base(model: ModelCopy, rng: Random) -> Iterator[Case]:
    now = float(str(model.scalars.get(f"{model.arch}.rope.freq_base", 10000.0)))
    for value in (10000.0 if now != 10000 else 20000.0, 0.99 * now, now / 10, 5 * now, 1.1 * now):
        yield key_fault("RoPE base", {"rope.freq_base": value}, (0, "q_rope"))
    for token in rng.sample(PROMPT, 2):
        yield key_fault("RoPE base, one token", {"rope.freq_base": now / 10}, (0, "q_rope"), reached=False,
                        prompt=(token,))


def rope_scaling(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for factor in (2.0, 4.0):
        scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        yield key_fault("RoPE scaling", scaling, (0, "q_rope"))
        yield key_fault("rope.scale_linear", {"rope.scale_linear": factor}, (0, "q_rope"), refused=True,
                        names=("rope.scaling.factor", "rope.scaling.type"))


def head_keys(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """Heads of half the width in equal shapes; fewer key-value heads than the rows of k make."""
    head, n_head, n_kv = model.head_dim, model.number("attention.head_count"), model.number("attention.head_count_kv")
    if f"{model.arch}.attention.key_length" not in model.scalars:
        yield key_fault("heads of half the width", {
            "attention.head_count": 2 * n_head, "attention.head_count_kv": 2 * n_kv,
            "rope.dimension_count": head // 2}, (0, "q_rope"), names=("attention.key_length",))
        yield key_fault("RoPE dimension", {"rope.dimension_count": head // 2}, (0, "q_rope"))
    if n_kv > 1:
        yield key_fault("head_count_kv", {"attention.head_count_kv": 1}, (0, "qkv"), names=("attn_k.weight",),
                        refused=True)


def not_causal(model: ModelCopy, rng: Random) -> Iterator[Case]:
    yield key_fault("attention.causal = false", {"attention.causal": False}, (0, "attn_mix"), refused=True)


def unread(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """Tensors that are added: a llama file whose engine would read them, or that no engine does."""
    last, d_model = model.n_layer, model.number("embedding_length")
    layers = {"a layer's": [rng.randrange(last)], "every layer's": list(range(last))}
    for (who, some), role in zip([*layers.items()] * 3, ("ffn_gate", "ffn_up", "ffn_down") * 2, strict=True):
        rows = model.tensors[tensor_name(0, role)].shape[0]
        yield added("MLP bias", f"{who} {role}.bias", {f"blk.{i}.{role}.bias": rows for i in some},
                    (some[0], {"ffn_down": "ffn_out"}.get(role, role)))
    vocab = model.tensors["token_embd.weight"].shape[0]
    yield added("output bias", "output.bias", {"output.bias": vocab}, (None, "logits"))
    if tensor_name(0, "attn_q_norm") not in model.tensors:
        for part in "qk":
            names = {tensor_name(i, f"attn_{part}_norm"): model.head_dim for i in range(last)}
            yield added("QK norms", f"attn_{part}_norm", names, (0, f"{part}_rope"))
    if tensor_name(0, "post_attention_norm") not in model.tensors:
        yield added("post norms", "post_attention_norm", {
            tensor_name(i, "post_attention_norm"): d_model for i in range(last)}, (0, "attn_post_norm"))
    yield added("misnamed tensor", "blk.0.attn_norm.weights", {"blk.0.attn_norm.weights": d_model}, None)
    yield added("layers past block_count", "one norm", {tensor_name(last, "attn_norm"): d_model}, None)
    yield Case("fault", "layers past block_count", "a whole layer", partial(repeat_layer, layer=last - 1), None,
               (f"blk.{last}.",), refused=True)


def added(kind: str, label: str, sizes: Mapping[str, int], place: Place | None) -> Case:
    """Vectors of small noise about one that a file of this family does not have."""
    def edit(model: ModelCopy) -> None:
        noise = np.random.default_rng(0)
        for name, size in sizes.items():
            model.put_values(name, (1 + 0.3 * noise.standard_normal(size)).astype(np.float32), T.F32)

    return Case("fault", kind, label, edit, place, tuple(sizes), refused=True)


def repeat_layer(model: ModelCopy, layer: int) -> None:
    """Append a copy of a layer under the next number, block_count left as it is."""
    for name in [n for n in model.tensors if n.startswith(f"blk.{layer}.")]:
        model.tensors[name.replace(f"blk.{layer}.", f"blk.{layer + 1}.")] = model.tensors[name]


def alone(kind: str, faults: Kind, is_proof: bool = True) -> Kind:
    """The same faults, the file checked by itself: FAIL, naming the tensor; part of a vector of zeros is not told.

    Where it is no proof of a fault (one row of zeros may be a pruned neuron): PASS, naming it all the same.
    """
    def cases(model: ModelCopy, rng: Random) -> Iterator[Case]:
        for case in faults(model, rng):
            if len(case.names) > 1 or not case.label.startswith("output_norm"):
                yield replace(case, group="check", kind=kind, alone=True, place=case.place if is_proof else None)
    return cases


KEYS: dict[str, Kind] = {
    "eps": eps, "RoPE base": rope_base, "RoPE scaling": rope_scaling, "head keys": head_keys,
    "attention.causal": not_causal, "unread tensors": unread,
}
CHECKS: dict[str, Kind] = {
    "check: NaN scale": alone("check: NaN scale", nan_scale),
    "check: zeroed rows": alone("check: zeroed rows", tensor_tail_zeroed),
    "check: one zeroed row": alone("check: one zeroed row", rows_zeroed, is_proof=False),
    "check: zeroed tail of the file": alone("check: zeroed tail of the file", file_tail_zeroed),
}
