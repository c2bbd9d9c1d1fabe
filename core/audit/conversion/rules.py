"""Which tensor of which architecture takes which transforms: one table. What a step does: steps.py.

A rule's pattern is of the tensor's name in the GGUF file, without its layer. Rules of an architecture come before those
of all; the first that fits is taken. What has no rule is stored as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PERMUTED = ("llama", "mistral3", "smollm3", "granite", "granitemoe", "granitehybrid", "olmo", "arcee", "minicpm")
PLUS_ONE = ("gemma", "gemma2", "gemma3")
PLUS_ONE_BUT_SSM = ("qwen3next", "qwen35", "qwen35moe")
TILED = ("qwen35", "qwen35moe")


@dataclass(frozen=True, slots=True)
class Rule:
    """Transforms of the tensors that a pattern names. archs: empty for all."""

    pattern: str
    steps: tuple[str, ...]
    archs: tuple[str, ...] = ()


RULES = (
    Rule(r"attn_q\.(weight|bias)", ("permute_q",), PERMUTED),
    Rule(r"attn_k\.(weight|bias)", ("permute_k",), PERMUTED),
    Rule(r".*norm.*\.weight", ("plus_one",), PLUS_ONE),
    Rule(r"(?!ssm_).*norm.*\.weight", ("plus_one",), PLUS_ONE_BUT_SSM),
    Rule(r".*norm.*\.weight", ("plus_one",), ("nemotron",)),
    # Conv1D of GPT-2 keeps (in, out)
    Rule(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", ("transpose",), ("gpt2",)),
    Rule(r"attn_qkv\.(weight|bias)", ("by_head",), ("bloom", "gptneox")),
    Rule(r"attn_qkv\.weight", ("by_group",), ("falcon",)),
    # gated delta nets: tiled value heads
    Rule(r"ssm_a", ("tiled_heads", "neg_exp"), TILED),
    Rule(r"(ssm_alpha|ssm_beta)\.weight|ssm_dt\.bias", ("tiled_heads",), TILED),
    Rule(r"attn_gate\.weight", ("tiled_rows",), TILED),
    Rule(r"ssm_out\.weight", ("tiled_columns",), TILED),
    Rule(r"attn_qkv\.weight|ssm_conv1d\.weight", ("tiled_tail",), TILED),
    # falcon-h1 folds its multipliers
    Rule(r"attn_q\.weight|attn_v\.weight", ("attention_in",), ("falcon-h1",)),
    Rule(r"attn_k\.weight", ("attention_in", "key"), ("falcon-h1",)),
    Rule(r"attn_output\.weight", ("attention_out",), ("falcon-h1",)),
    Rule(r"ffn_gate\.weight", ("mlp_gate",), ("falcon-h1",)),
    Rule(r"ffn_down\.weight", ("mlp_down",), ("falcon-h1",)),
    Rule(r"ssm_in\.weight", ("ssm_in",), ("falcon-h1",)),
    Rule(r"ssm_out\.weight", ("ssm_out",), ("falcon-h1",)),
    Rule(r"output\.weight", ("lm_head",), ("falcon-h1",)),
    Rule(r"token_embd\.weight", ("embedding",), ("falcon-h1",)),
    Rule(r"ssm_a", ("neg_exp",)),
)


@dataclass(frozen=True, slots=True)
class Split:
    """One tensor of the original (a pattern of its whole name) that becomes several: GGUF name -> steps.

    joined: the name under which a file may keep it whole; "" where none does.
    """

    pattern: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    joined: str = ""
    archs: tuple[str, ...] = ()


def _gate_up(suffix: str, *steps: str, kind: str = "exps") -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Parts 0 and 1 of the first of these steps are the gate and what is up."""
    first, *rest = steps
    return tuple((f"ffn_{role}_{kind}{suffix}", (f"{first}:{i}", *rest)) for i, role in enumerate(("gate", "up")))


SPLITS = (
    Split(r"experts\.gate_up_proj", _gate_up(".weight", "every_second", "transpose"), archs=("gpt-oss",)),
    Split(r"experts\.gate_up_proj_blocks", _gate_up(".weight", "row_second"), archs=("gpt-oss",)),
    Split(r"experts\.gate_up_proj_bias", _gate_up(".bias", "every_second"), archs=("gpt-oss",)),
    Split(r"experts\.gate_up_proj", _gate_up(".weight", "last_half", "transpose"), archs=("llama4",)),
    Split(r"(experts\.gate_up_proj|block_sparse_moe\.input_linear)(\.weight)?", _gate_up(".weight", "half"),
          joined="ffn_gate_up_exps.weight"),
    Split(r"shared_mlp\.input_linear\.weight", (("ffn_gate.weight", ("half:0",)), ("ffn_up.weight", ("half:1",)))),
    Split(r"kv_b_proj\.weight", (("attn_k_b.weight", ("kv_b:0",)), ("attn_v_b.weight", ("kv_b:1",))),
          joined="attn_kv_b.weight"),
    Split(r"in_proj_qkvz\.weight", (("attn_qkv.weight", ("qkvz:0",)), ("attn_gate.weight", ("qkvz:1",))),
          joined="ssm_in.weight", archs=("qwen3next",)),
)
WHOLE_STEPS = (  # of an original's tensor that keeps its name, before the rules: (pattern, steps, archs)
    Rule(r"experts\.down_proj", ("transpose",), ("gpt-oss", "llama4")),
)


def steps_of(role: str, arch: str) -> tuple[str, ...]:
    """The transforms of a tensor, by its GGUF name without the layer."""
    for rule in sorted(RULES, key=lambda r: not r.archs):
        if (not rule.archs or arch in rule.archs) and re.fullmatch(rule.pattern, role):
            return rule.steps
    return ()


def split_of(name: str, arch: str) -> Split | None:
    """How a tensor of the original is divided; None where it is not."""
    return next((s for s in SPLITS if (not s.archs or arch in s.archs) and re.search(rf"(^|\.){s.pattern}$", name)),
                None)


def steps_before(name: str, arch: str) -> tuple[str, ...]:
    """Transforms of an original's tensor by its own name."""
    return next((r.steps for r in WHOLE_STEPS if arch in r.archs and re.search(rf"(^|\.){r.pattern}$", name)), ())
