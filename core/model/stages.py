"""Name the stages of a transformer's forward, in order of computation, and the scopes. No maths, no values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from core.system.errors import UsageError

Operation = Literal[
    "lookup", "norm", "linear", "rope", "attention", "residual", "activation", "product",
    "recurrence",  # of a recurrent mixer, from its input projections
    "latent",      # the norm of a part of another stage
    "route",       # weights of the chosen experts, dense [T, E], from the router's logits
    "experts",     # products of the chosen experts
    "mixture",     # the experts' outputs by their weights, or a product with a value that is no stage
]
PREVIOUS = "previous"  # as an input: the output of the layer before, embedding at layer 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One named value of the forward, and what other files need to know of it.

    width: D model, Q = (n_head + 2 n_kv_head) * head_dim, H = n_head * head_dim, K = n_kv_head * head_dim,
    F feed-forward, V vocabulary, E experts, S shared experts, else the stage's own. inputs: the stages that the
    operation reads, in its order, or PREVIOUS. A layer of another kind than the usual one has other inputs, weights
    and operations, or lacks the stage: its nodes say so (layers.py), these columns are the usual layer's.
    weights: GGUF's tensors behind it, without "blk.N." and ".weight"; a linear stage joins their products in order.
    tied: the tensor in their place where the file has none of them.
    llama_cpp: its nodes there, without "-N"; none where a tensor tells it, which its node reads or which reads it.
    aprt: stems of its APRT files, the last wins; none: its own name.
    """

    name: str
    width: str
    operation: Operation
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    tied: str | None = None
    whole: bool = False   # of the whole model, not of a layer
    special: bool = False  # of layers of another kind than the usual decoder's
    detail: bool = False  # for drill-down and replay, not a column of the grid
    llama_cpp: tuple[str, ...] = ()
    aprt: tuple[str, ...] = ()


STAGES = (
    Stage("embedding", "D", "lookup", (), ("token_embd",), whole=True),
    Stage("attn_norm", "D", "norm", (PREVIOUS,), ("attn_norm",)),
    Stage("ssm_in", "ssm_in", "linear", ("attn_norm",), special=True, detail=True),
    Stage("ssm_mix", "ssm_mix", "recurrence", ("ssm_in",), special=True, detail=True),
    Stage("ssm_out", "D", "linear", ("ssm_mix",), special=True, detail=True),
    Stage("mla_q_a", "mla_q_a", "linear", ("attn_norm",), special=True, detail=True),
    Stage("mla_q", "mla_q", "linear", ("mla_q_a",), special=True, detail=True),
    Stage("mla_kv_a", "mla_kv_a", "linear", ("attn_norm",), special=True, detail=True),
    Stage("qkv", "Q", "linear", ("attn_norm",), ("attn_q", "attn_k", "attn_v"), aprt=("qkv_matmul", "qkv_bias")),
    Stage("mla_kv_a_norm", "mla_kv_a_norm", "latent", ("mla_kv_a",), special=True, detail=True),
    Stage("q_rope", "H", "rope", ("qkv",), ("attn_q_norm",), detail=True, llama_cpp=("Qcur", "Qcur_pos"),
          aprt=("q_post_rope",)),
    Stage("k_rope", "K", "rope", ("qkv",), ("attn_k_norm",), detail=True, llama_cpp=("Kcur", "Kcur_pos"),
          aprt=("k_post_rope",)),
    Stage("attn_mix", "H", "attention", ("q_rope", "k_rope", "qkv"), detail=True,
           aprt=("attention",)),
    Stage("attn_out", "D", "linear", ("attn_mix",), ("attn_output",)),
    Stage("attn_post_norm", "D", "norm", ("attn_out",), special=True, detail=True),
    Stage("attn_resid", "D", "residual", (PREVIOUS, "attn_out"), detail=True,
          aprt=("post_attn_residual",)),
    Stage("ffn_norm", "D", "norm", ("attn_resid",), ("ffn_norm",)),
    Stage("moe_norm", "D", "norm", ("attn_resid",), special=True, detail=True),
    Stage("moe_router", "E", "linear", ("ffn_norm",), special=True, detail=True),
    Stage("moe_weights", "E", "route", ("moe_router",), special=True, detail=True),
    Stage("ffn_gate", "F", "linear", ("ffn_norm",), ("ffn_gate",)),
    Stage("ffn_up", "F", "linear", ("ffn_norm",), ("ffn_up",)),
    Stage("ffn_silu", "F", "activation", ("ffn_gate",), llama_cpp=("ffn_silu",)),
    Stage("ffn_swigl", "F", "product", ("ffn_silu", "ffn_up")),
    Stage("moe_down", "moe_down", "experts", ("ffn_swigl", "moe_weights"), special=True, detail=True),
    Stage("moe_out", "D", "mixture", ("moe_down", "moe_weights"), special=True, detail=True,
          llama_cpp=("ffn_moe_out",)),
    Stage("moe_post_norm", "D", "norm", ("moe_out",), special=True, detail=True),
    Stage("shexp_gate", "S", "linear", ("ffn_norm",), special=True, detail=True),
    Stage("shexp_up", "S", "linear", ("ffn_norm",), special=True, detail=True),
    Stage("shexp_silu", "S", "activation", ("shexp_gate",), special=True, detail=True),
    Stage("shexp_swigl", "S", "product", ("shexp_silu", "shexp_up"), special=True, detail=True),
    Stage("shexp_out", "D", "linear", ("shexp_swigl",), special=True, detail=True),
    Stage("shexp_router", "shexp_router", "linear", ("ffn_norm",), special=True, detail=True),
    Stage("shexp_post_norm", "D", "norm", ("shexp_out",), special=True, detail=True),
    Stage("ffn_out", "D", "linear", ("ffn_swigl",), ("ffn_down",)),
    Stage("ffn_post_norm", "D", "norm", ("ffn_out",), special=True, detail=True),
    Stage("ple_gate", "ple_gate", "linear", ("attn_resid", "ffn_post_norm"), special=True, detail=True),
    Stage("ple_mix", "ple_gate", "mixture", ("ple_gate",), special=True, detail=True),
    Stage("ple_out", "D", "mixture", ("ple_mix",), special=True, detail=True),
    Stage("output", "D", "residual", ("attn_resid", "ffn_out"), llama_cpp=("l_out", "nemotron_h_block_out"),
          aprt=("layer_output", "post_ffn_residual")),
    Stage("final_norm", "D", "norm", (PREVIOUS,), ("output_norm",), whole=True),
    Stage("logits", "V", "linear", ("final_norm",), ("output",), tied="token_embd", whole=True, aprt=("lm_head",)),
)
ALIASES = {"ffn_swiglu": "ffn_swigl"}
GRID_STAGES = tuple(s.name for s in STAGES if not s.whole and not s.detail)
USUAL = tuple(s for s in STAGES if not s.special)
SUB_FFN = tuple(s.name for s in STAGES if s.width == "F" and not s.detail)  # the contracts' word: inside the FFN
TRUNK = ("embedding", "output")  # the residual stream between layers: the next layer's PREVIOUS
ROUTER = "moe_router"    # the logits by which experts are chosen
ROUTED = "moe_weights"  # dense over the experts; its statistics are of the chosen ones
PRODUCT = "ffn_swigl"  # whose factors' correlation is a statistic
FACTORS = next(s.inputs for s in STAGES if s.name == PRODUCT)
SCOPES = ("all", "last", "first", "rest")
UNKNOWN_SCOPE = "unknown"  # of a table that does not say which tokens it covers
MOST_DIGITS = 18           # of a number that somebody typed; Python refuses to read one of thousands
NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")

_BY_NAME = {s.name: s for s in STAGES}
_ORDER = {s.name: i for i, s in enumerate(STAGES)}

Place = tuple[int | None, str]  # (layer, stage); the layer of a whole-model stage is None


def stage_named(name: str) -> Stage:
    """Return the stage of that name or alias; UsageError lists the names."""
    stage = _BY_NAME.get(ALIASES.get(name, name))
    if stage is None:
        raise UsageError(f"{name!r} is not a stage. Stages: {', '.join(_BY_NAME)}.")
    return stage


def stages_of(operation: Operation) -> tuple[str, ...]:
    """The stages that an operation makes, in order of computation."""
    return tuple(s.name for s in STAGES if s.operation == operation)


def place_order(place: Place) -> tuple[int, int]:
    """Sort key of a place: order of computation through the whole model."""
    layer, stage = place
    if layer is None:
        return (-1 if stage == "embedding" else 1 << 30, _ORDER[stage])
    return (layer, _ORDER[stage])


def place_text(place: Place) -> str:
    """Write a place as people type it: 3.ffn_swigl, or final_norm."""
    layer, stage = place
    return stage if layer is None else f"{layer}.{stage}"


def read_whole(text: str, most_digits: int = MOST_DIGITS) -> int | None:
    """Read a whole number from 0 as people type it, in ASCII digits; None where the text is anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= most_digits else None


def read_number(text: str) -> float | None:
    """Read a number from 0 as people type it: 10, 0.5, 3e-4; None where the text is anything else, or too large."""
    value = float(text) if NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def parse_place(text: str) -> Place:
    """Read a place as place_text writes it; UsageError otherwise."""
    layer, dot, name = text.rpartition(".")
    stage, number = stage_named(name), read_whole(layer)
    if stage.whole == bool(dot) or (dot and number is None):
        raise UsageError(f"{text!r} is not a place. Write LAYER.STAGE, or the name alone of a whole-model stage.")
    return number, stage.name


def parse_scope(text: str) -> str:
    """Check a scope's spelling: all, last, first, rest or pos:N; UsageError otherwise."""
    if text in SCOPES or (text.startswith("pos:") and read_whole(text[4:]) is not None):
        return text
    raise UsageError(f"{text!r} is not a scope. Scopes: all, last, first, rest, pos:N (N counts from 0).")


def parse_stored_scope(text: str) -> str:
    """Check the scope of a saved table: one that people type, or UNKNOWN_SCOPE; UsageError otherwise."""
    return text if text == UNKNOWN_SCOPE else parse_scope(text)


def scope_positions(scope: str, n_token: int) -> range:
    """Positions that a scope covers; empty where the run has none of them."""
    if scope == "all":
        return range(n_token)
    if scope == "last":
        return range(max(n_token - 1, 0), n_token)
    if scope == "first":
        return range(min(1, n_token))
    if scope == "rest":
        return range(1, max(n_token, 1))
    position = int(scope.removeprefix("pos:"))
    return range(position, position + 1) if position < n_token else range(0)
