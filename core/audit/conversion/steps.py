"""What a converter does to a tensor's values, a row each: the table of transforms. Which tensor takes which: rules.py.

A step is a word, or a word and a number after a colon. Values are float32, their shape is (rows, cols) as an original
has it, experts first: [E, rows, cols]. Source: what each family's layer in transformers 5.24 computes beside what
ggml's graph of it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.audit.conversion.sizes import Sizes
from core.formats.architectures import rope_row_order

Step = Callable[[Tensor, Sizes, int], Tensor]


class DoesNotFit(Exception):
    """A step cannot be taken on a tensor of this shape."""


def take(values: Tensor, steps: Sequence[str], sizes: Sizes) -> Tensor:
    """Take steps one after the other; DoesNotFit."""
    for word in steps:
        name, _, number = word.partition(":")
        try:
            values = STEPS[name](values, sizes, int(number or 0))
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError, KeyError, AttributeError) as error:
            raise DoesNotFit(f"{word} on {list(values.shape)}: {error}") from error
    return values


def _permuted(values: Tensor, n_head: int) -> Tensor:
    """Rows of q or k from split halves to adjacent pairs, in each of n_head heads."""
    rows = values.shape[0]
    if rows % (2 * n_head):
        raise DoesNotFit(f"{rows} rows are no {n_head} heads")
    return values[rope_row_order(rows, rows // n_head, "halves")]


def _unpermuted(values: Tensor, n_head: int) -> Tensor:
    rows = values.shape[0]
    if rows % (2 * n_head):
        raise DoesNotFit(f"{rows} rows are no {n_head} heads")
    return values[rope_row_order(rows, rows // n_head, "adjacent")]


def _half(values: Tensor, axis: int, which: int) -> Tensor:
    if values.shape[axis] % 2:
        raise DoesNotFit(f"{list(values.shape)} has no halves")
    return values.chunk(2, axis)[which]


def _by_head(values: Tensor, sizes: Sizes, part: int) -> Tensor:
    """Rows [head, (q, k, v), width] -> all q, all k, all v."""
    rows = values.view(sizes.n_head, 3, -1, *values.shape[1:])
    return rows.transpose(0, 1).reshape(values.shape)


def _by_group(values: Tensor, sizes: Sizes, part: int) -> Tensor:
    """Rows [kv head, (its queries, k, v), width] -> all q, all k, all v."""
    queries = sizes.n_head // sizes.n_kv
    rows = values.view(sizes.n_kv, queries + 2, sizes.head_dim, *values.shape[1:])
    parts = (rows[:, :queries], rows[:, [-2]], rows[:, [-1]])
    return torch.cat([p.reshape(-1, *values.shape[1:]) for p in parts])


def _kv_b(values: Tensor, sizes: Sizes, which: int) -> Tensor:
    """kv_b_proj [heads x (nope + v), rank] -> k_b [heads, rank, nope] or v_b [heads, v, rank]."""
    rows = values.view(sizes.n_head, sizes.nope + sizes.v_dim, -1)
    return rows[:, sizes.nope:] if which else rows[:, :sizes.nope].transpose(1, 2)


def _tiled(values: Tensor, sizes: Sizes, axis: int, width: int) -> Tensor:
    """Value heads from key head by key head to round by round: j reads key head j % K afterwards."""
    shape = values.shape
    each = sizes.v_heads // sizes.k_heads
    heads = values.reshape(*shape[:axis], sizes.k_heads, each, width, *shape[axis + 1:])
    return heads.transpose(axis, axis + 1).reshape(shape)


def _tiled_tail(values: Tensor, sizes: Sizes, part: int) -> Tensor:
    """The same of a joined q, k, v (or its convolution): the last rows only."""
    at = values.shape[0] - sizes.v_heads * sizes.v_width
    return torch.cat([values[:at], _tiled(values[at:], sizes, 0, sizes.v_width)])


def _qkvz(values: Tensor, sizes: Sizes, which: int) -> Tensor:
    """in_proj_qkvz, by key head (q, k, its v, its z) -> all q, k, v (0) or all z (1)."""
    each = sizes.v_heads // sizes.k_heads * sizes.v_width
    rows = values.view(sizes.k_heads, 2 * sizes.k_width + 2 * each, *values.shape[1:])
    parts = torch.split(rows, [sizes.k_width, sizes.k_width, each, each], 1)
    chosen = parts[3:] if which else parts[:3]
    return torch.cat([p.reshape(-1, *values.shape[1:]) for p in chosen])


def _times(name: str, at: int | None = None) -> Step:
    """Multiply by one of the configuration's numbers."""
    def multiply(values: Tensor, sizes: Sizes, part: int) -> Tensor:
        said = sizes.config.get(name, 1.0)
        return values * float(said if at is None else said[at])
    return multiply


def _ssm_times(values: Tensor, sizes: Sizes, part: int) -> Tensor:
    """Falcon-H1's in_proj: rows of z, x, B, C and dt, each by its multiplier."""
    c = sizes.config
    inner, groups = int(c["mamba_d_ssm"]), int(c["mamba_n_groups"]) * int(c["mamba_d_state"])
    counts = (inner, inner, groups, groups, int(c["mamba_n_heads"]))
    each = torch.cat([torch.full((n,), float(m)) for n, m in zip(counts, c["ssm_multipliers"], strict=True)])
    return values * float(c.get("ssm_in_multiplier", 1.0)) * each[:, None]


STEPS: dict[str, Step] = {
    "permute_q": lambda v, s, n: _permuted(v, s.n_head),
    "permute_k": lambda v, s, n: _permuted(v, s.n_kv),
    "unpermute_q": lambda v, s, n: _unpermuted(v, s.n_head),
    "unpermute_k": lambda v, s, n: _unpermuted(v, s.n_kv),
    "plus_one": lambda v, s, n: v + 1,
    "minus_one": lambda v, s, n: v - 1,
    "negate": lambda v, s, n: -v,
    "exp": lambda v, s, n: v.exp(),
    "neg_exp": lambda v, s, n: -v.exp(),
    "log": lambda v, s, n: v.log(),
    "transpose": lambda v, s, n: v.transpose(-2, -1),
    "written_turned": lambda v, s, n: v.transpose(-2, -1).reshape(v.shape),
    "read_turned": lambda v, s, n: v.reshape(*v.shape[:-2], v.shape[-1], v.shape[-2]).transpose(-2, -1),
    "half": lambda v, s, n: _half(v, 1 if v.ndim == 3 else 0, n),  # rows, of each expert
    "last_half": lambda v, s, n: _half(v, -1, n),
    "every_second": lambda v, s, n: v[..., n::2],
    "row_second": lambda v, s, n: v[..., n::2, :],
    "by_head": _by_head,
    "by_group": _by_group,
    "kv_b": _kv_b,
    "tiled_rows": lambda v, s, n: _tiled(v, s, 0, s.v_width),
    "tiled_heads": lambda v, s, n: _tiled(v, s, 0, 1),
    "tiled_columns": lambda v, s, n: _tiled(v, s, 1, s.v_width),
    "tiled_tail": _tiled_tail,
    "qkvz": _qkvz,
    "flip_columns": lambda v, s, n: v.flip(-1),
    "attention_in": _times("attention_in_multiplier"),
    "attention_out": _times("attention_out_multiplier"),
    "key": _times("key_multiplier"),
    "mlp_gate": _times("mlp_multipliers", 0),
    "mlp_down": _times("mlp_multipliers", 1),
    "ssm_out": _times("ssm_out_multiplier"),
    "ssm_in": _ssm_times,
    "lm_head": _times("lm_head_multiplier"),
    "embedding": _times("embedding_multiplier"),
}
