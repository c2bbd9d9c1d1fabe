"""Read the names that other tools give a value: 3.ffn_out, ffn_out-3, a module's path, hidden_3. It reads no file.

A value is a stage, or a part of a joined one (q of qkv), which keeps the path of its module until it is joined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.model.stages import ALIASES, STAGES, TRUNK, parse_place
from core.system.errors import AprError

Part = tuple[int | None, str]  # (layer, stage), or (layer, the path of a module that makes a part of a stage)

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
JOINED = dict.fromkeys(QKV, "qkv")
OUTPUTS = {  # the module of a layer -> what it puts out
    "input_layernorm": "attn_norm", **{path: path for path in QKV}, "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.act_fn": "ffn_silu", "mlp.down_proj": "ffn_out", "": "output",
}
INPUTS = {"self_attn.o_proj": "attn_mix", "post_attention_layernorm": "attn_resid", "mlp.down_proj": "ffn_swigl"}
WHOLE = {"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "logits", "logits_processor": "logits"}
# SGLang and vLLM: products in one, the residual beside (".1"); the sum before a layer's first norm is what came before
FUSED = {
    "self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": "mlp.gate_up_proj", "self_attn.attn": "attn_mix",
    "self_attn": "attn_out", "mlp": "ffn_out", "post_attention_layernorm.1": "attn_resid",
    **{f"{path}.0": name for path, name in OUTPUTS.items() if path},
}
BEFORE = "input_layernorm"  # the module whose input is what the layer before made
HALVES = {"mlp.gate_up_proj": ("ffn_gate", "ffn_up")}
NODES = {**{n: s.name for s in STAGES if not s.whole and s.operation != "rope" for n in s.llama_cpp},
         **{s.name: s.name for s in STAGES if not s.whole}, "ffn_gate_par": "ffn_swigl", "kqv_out": "attn_mix",
         "ffn_inp": "attn_resid", **ALIASES}

_MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.([0-9]{1,6})(?:\.(.+))?$")
_HIDDEN = re.compile(r"hidden(?:_states?)?[_.-]([0-9]{1,6})$")
_NODE = re.compile(r"([A-Za-z]\w*)-([0-9]{1,6})$")


@dataclass(frozen=True, slots=True)
class Hidden:
    """One of transformers' hidden_states: 0 is the embedding, the last follows the final norm."""

    index: int


def part_named(name: str) -> Part | Hidden | None:
    """Say which value a name means; None where it is none that this tool has."""
    hidden = _HIDDEN.search(name)
    if hidden:
        return Hidden(int(hidden[1]))
    try:
        return parse_place(ALIASES.get(name, name))
    except AprError:
        pass
    node = _NODE.match(name)
    if node:
        return (int(node[2]), NODES[node[1]]) if node[1] in NODES else None
    return output_of(name)


def output_of(path: str) -> Part | None:
    """Which value the module of that path puts out."""
    found = _MODULE.match(path)
    if found:
        layer, inside = int(found[1]), found[2] or ""
        if inside == f"{BEFORE}.1":
            return _before(layer)
        name = OUTPUTS.get(inside, FUSED.get(inside))
        return None if name is None else (layer, name)
    name = WHOLE.get(path.removesuffix(".0").rpartition(".")[2])
    return None if name is None else (None, name)


def input_of(path: str) -> Part | None:
    """Which value goes into the module of that path."""
    found = _MODULE.match(path)
    if found is None:
        return None
    layer, inside = int(found[1]), found[2] or ""
    if inside == BEFORE:
        return _before(layer)
    return (layer, INPUTS[inside]) if inside in INPUTS else None


def is_norm_after(path: str) -> bool:
    """Whether the module is the final norm, whose input is the last layer's output."""
    return _MODULE.match(path) is None and WHOLE.get(path.rpartition(".")[2]) == "final_norm"


def _before(layer: int) -> Part:
    return (layer - 1, TRUNK[1]) if layer else (None, TRUNK[0])
