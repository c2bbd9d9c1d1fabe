"""Name the stages of a transformer's forward, in order of computation, and the scopes. No maths, no values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from core.system.errors import UsageError


@dataclass(frozen=True, slots=True)
class Stage:
    """One named value of the forward.

    width: D model, Q = (n_head + 2 n_kv_head) * head_dim, H = n_head * head_dim, K = n_kv_head * head_dim,
    F feed-forward, V vocabulary. inputs: the stages it is recomputed from; "previous" is the output of the layer before
    (embedding at 0).
    """

    name: str
    width: str
    inputs: tuple[str, ...]
    whole: bool = False   # of the whole model, not of a layer
    detail: bool = False  # for drill-down and replay, not a column of the grid


STAGES = (
    Stage("embedding", "D", (), whole=True),
    Stage("attn_norm", "D", ("previous",)),
    Stage("qkv", "Q", ("attn_norm",)),
    Stage("q_rope", "H", ("qkv",), detail=True),
    Stage("k_rope", "K", ("qkv",), detail=True),
    Stage("attn_mix", "H", ("q_rope", "k_rope", "qkv"), detail=True),
    Stage("attn_out", "D", ("attn_mix",)),
    Stage("attn_resid", "D", ("previous", "attn_out"), detail=True),
    Stage("ffn_norm", "D", ("attn_resid",)),
    Stage("ffn_gate", "F", ("ffn_norm",)),
    Stage("ffn_up", "F", ("ffn_norm",)),
    Stage("ffn_silu", "F", ("ffn_gate",)),
    Stage("ffn_swigl", "F", ("ffn_silu", "ffn_up")),
    Stage("ffn_out", "D", ("ffn_swigl",)),
    Stage("output", "D", ("attn_resid", "ffn_out")),
    Stage("final_norm", "D", ("previous",), whole=True),
    Stage("logits", "V", ("final_norm",), whole=True),
)
ALIASES = {"ffn_swiglu": "ffn_swigl"}
GRID = tuple(s.name for s in STAGES if not s.whole and not s.detail)
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
