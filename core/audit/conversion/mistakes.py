"""What converters do wrong, a row each: the same sources with other transforms. Tried in this order on what differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.audit.conversion.plan import Expected


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong way to make a tensor. sentence stands behind the tensor's name."""

    kind: str
    sentence: str
    item: Expected


@dataclass(frozen=True, slots=True)
class Swap:
    """A declared step and what a converter may have put in its place."""

    step: str
    kind: str
    sentence: str
    instead: tuple[str, ...]


SWAPS = (
    Swap("plus_one", "norm + 1 not folded", "is w where the family stores 1 + w: norm + 1 was not folded", ()),
    Swap("plus_one", "norm + 1 not folded", "is (w + 1) - 1 where the family stores 1 + w: 1 was taken off again",
         ("plus_one", "minus_one")),
    Swap("plus_one", "norm + 1 folded twice", "is w + 2 where the family stores 1 + w: norm + 1 was folded twice",
         ("plus_one", "plus_one")),
    Swap("plus_one", "norm + 1 subtracted", "is w - 1 where the family stores 1 + w", ("minus_one",)),
    *(Swap(f"permute_{x}", "not permuted", f"its rows are un-permuted: the original's RoPE order (split halves), where "
           f"this architecture stores adjacent pairs; {x} was not permuted", ()) for x in "qk"),
    *(Swap(f"permute_{x}", "permuted twice", f"the rows of {x} were permuted twice: RoPE order",
           (f"permute_{x}", f"permute_{x}")) for x in "qk"),
    *(Swap(f"permute_{x}", "permuted backwards", f"the rows of {x} were permuted the other way: RoPE order",
           (f"unpermute_{x}",)) for x in "qk"),
    Swap("permute_k", "permuted by other heads", "its rows were permuted by the query heads' count, not the key heads'",
         ("permute_q",)),
    Swap("permute_q", "permuted by other heads", "its rows were permuted by the key heads' count, not the query heads'",
         ("permute_k",)),
    Swap("transpose", "transposed", "is not transposed, where the original keeps (in, out) and a GGUF (out, in)", ()),
    Swap("neg_exp", "sign", "is exp(A_log) without its sign: -exp(A_log) is stored", ("exp",)),
    Swap("neg_exp", "exp not taken", "is A_log itself, where -exp(A_log) is stored", ()),
    Swap("neg_exp", "exp not taken", "is -A_log, where -exp(A_log) is stored", ("negate",)),
    Swap("neg_exp", "exp taken twice", "is -exp(-exp(A_log)), where -exp(A_log) is stored", ("neg_exp", "neg_exp")),
    Swap("by_head", "fused order", "its rows stand as in the original, head by head (q, k, v), where all q, all k, all "
         "v are stored", ()),
    Swap("by_group", "fused order", "its rows stand as in the original, group by group, where all q, all k, all v are "
         "stored", ()),
    *(Swap(step, "value heads' order", "its value heads stand as in the original (by key head), where they are stored "
           "round by round", ()) for step in ("tiled_rows", "tiled_heads", "tiled_columns", "tiled_tail")),
    *(Swap(f"{step}:{i}", "gate and up exchanged", "has the other half of the joined gate and up: exchanged",
           (f"{step}:{1 - i}",)) for step in ("half", "last_half", "every_second", "row_second") for i in (0, 1)),
    *(Swap(f"every_second:{i}", "not interleaved", "has a half of the joined gate and up, which alternate in the "
           "original: gate and up not taken apart", (f"last_half:{i}",)) for i in (0, 1)),
    *(Swap(f"row_second:{i}", "not interleaved", "has a half of the joined gate and up, which alternate in the "
           "original: gate and up not taken apart", (f"half:{i}",)) for i in (0, 1)),
    *(Swap(f"{step}:{i}", "taken as interleaved", "has every second row of the joined gate and up, which are halves in "
           "the original", (f"every_second:{i}",)) for step in ("last_half",) for i in (0, 1)),
    *(Swap(step, "multiplier not folded", f"lacks the configuration's multiplier ({step}) that is folded in", ())
      for step in ("attention_in", "attention_out", "key", "mlp_gate", "mlp_down", "ssm_in", "ssm_out", "lm_head",
                   "embedding")),
)
MERGES = (
    (0.0, "merge had no effect", "is the base model's: the merge of the adapter had no effect"),
    (2.0, "merged twice", "has the adapter's delta twice: merged twice"),
    (-1.0, "merged with the other sign", "has the adapter's delta subtracted, not added"),
)
ADDED = (  # roles -> steps that this architecture does not take
    ("attn_q.", "permute_q", "permuted without cause", "its rows are permuted (RoPE order: adjacent pairs), where this "
     "architecture stores split halves"),
    ("attn_k.", "permute_k", "permuted without cause", "its rows are permuted (RoPE order: adjacent pairs), where this "
     "architecture stores split halves"),
    ("attn_q.", "unpermute_q", "permuted without cause", "its rows are permuted (RoPE order) the other way, where this "
     "architecture stores the original's order"),
    ("attn_k.", "unpermute_k", "permuted without cause", "its rows are permuted (RoPE order) the other way, where this "
     "architecture stores the original's order"),
    ("norm", "plus_one", "norm + 1 without cause", "is w + 1, where this architecture stores w"),
    ("norm", "minus_one", "norm + 1 subtracted", "is w - 1, where this architecture stores w"),
    ("conv", "flip_columns", "kernel reversed", "its kernel runs backwards"),
    ("", "transpose", "transposed", "is transposed"),
    ("", "written_turned", "transposed", "is transposed, and written in the other shape"),
    ("", "read_turned", "transposed", "is transposed after it was read in the other shape"),
    ("", "negate", "sign", "has the other sign"),
)


def mistakes_of(item: Expected, has_delta: bool) -> Iterator[Mistake]:
    """Every wrong way that the table knows to make this tensor."""
    if has_delta:
        yield from (Mistake(kind, sentence, replace(item, merge=times)) for times, kind, sentence in MERGES)
    for swap in SWAPS:
        if swap.step in item.steps:
            at = item.steps.index(swap.step)
            steps = (*item.steps[:at], *swap.instead, *item.steps[at + 1:])
            yield Mistake(swap.kind, swap.sentence, replace(item, steps=steps))
    for role, step, kind, sentence in ADDED:
        if role in item.name and step not in item.steps and not (step == "minus_one" and "plus_one" in item.steps):
            yield Mistake(kind, sentence, replace(item, steps=(*item.steps, step)))
