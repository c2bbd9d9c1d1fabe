"""Find which row of A each odd row of B is, and say it in words: exchanged, shifted, in the other RoPE order.

Rows are known again by a random projection of SKETCH numbers, so that a permutation of any size costs one reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.audit.weights.survey import chunks, row_shape
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

SKETCH = 48
MOST_ROWS = 1024  # rows of B that are looked for
ALIKE = 0.8       # cosine of two sketches of one row; of two rows of a large matrix it is below 0.75
ENOUGH = 0.9      # of the odd rows must be found elsewhere
SEED = 11


def match_rows(a: Weight, b: Weight, odd: Sequence[int], cancelled: IsCancelled) -> dict[int, int]:
    """Row of B -> the row of A that it is like most, for up to MOST_ROWS odd rows; empty where too few are found."""
    n_row, n_col = row_shape(a)
    wanted = list(odd[::-(-len(odd) // MOST_ROWS)]) if odd else []
    if n_row < 2 or len(wanted) < 1:
        return {}
    project = torch.randn((n_col, SKETCH), generator=torch.Generator().manual_seed(SEED))
    left, right = (torch.zeros((n_row, SKETCH)) for _ in range(2))
    for chunk in chunks(a, b, cancelled):
        stop = chunk.start + len(chunk.x)
        torch.mm(chunk.x, project, out=left[chunk.start:stop])
        torch.mm(chunk.y, project, out=right[chunk.start:stop])
    return _nearest(left, right[wanted], wanted)


def say_order(found: dict[int, int], n_row: int, heads: Sequence[int]) -> tuple[str, str] | None:
    """Name the order: (rope, shifted or reordered, sentence); None where rows are not moved."""
    moved = {i: j for i, j in found.items() if i != j}
    if not moved:
        return None
    for head in heads:
        halves = rope_order(n_row, head)
        if halves is not None and all(int(halves[i]) == j for i, j in found.items()):
            return "rope", (f"its rows are in the other RoPE order, heads of {head}: split halves in B (un-permuted) "
                            "where A has adjacent pairs")
        if halves is not None and all(int(halves[j]) == i for i, j in found.items()):
            return "rope", (f"its rows are in the other RoPE order, heads of {head}: split halves in A (un-permuted) "
                            "where B has adjacent pairs")
    runs = _exchanged_runs(moved)
    if runs is not None:
        (first, second), length = runs, len(moved) // 2
        if length == 1:
            return "reordered", f"rows {first} and {second} exchanged"
        return "reordered", f"rows {first}..{first + length - 1} and {second}..{second + length - 1} exchanged"
    steps = {i - j for i, j in moved.items()}
    if len(moved) > 2 and len({s % n_row for s in steps}) == 1:
        step = min(steps, key=abs)
        return "shifted", f"row i of B is row i {'-' if step > 0 else '+'} {abs(step)} of A: shifted"
    row, other = min(moved.items())
    if len(moved) == 1:
        return "reordered", f"row {row} of B is row {other} of A"
    return "reordered", f"{len(moved)} of its rows in another order: row {row} of B is row {other} of A"


def rope_order(n_row: int, head: int) -> Tensor | None:
    """Rows of each head from adjacent pairs to split halves: 0, 2, 4 .. then 1, 3, 5; None where heads do not fit."""
    if head < 4 or head % 2 or n_row % head:
        return None
    return torch.arange(n_row).view(-1, head // 2, 2).transpose(1, 2).reshape(-1)


def _nearest(left: Tensor, right: Tensor, wanted: list[int]) -> dict[int, int]:
    """Match sketches by their difference: the row of A nearest to each of B, in one size and one direction."""
    norms = left.norm(dim=1).clamp(min=1e-30)
    sizes = right.norm(dim=1).clamp(min=1e-30)
    cosine = (right / sizes[:, None]) @ (left / norms[:, None]).T
    ratio = sizes[:, None] / norms[None]
    near = torch.where((ratio > 0.5) & (ratio < 2.0), cosine, -1.0)
    best, at = near.max(1)
    sure = best > ALIKE
    if float(sure.double().mean()) < ENOUGH:
        return {}
    return {i: int(j) for i, j, s in zip(wanted, at, sure, strict=True) if s}


def _exchanged_runs(moved: dict[int, int]) -> tuple[int, int] | None:
    """The first rows of two runs of one length that took each other's place; None where it is something else."""
    rows = sorted(moved)
    length = len(rows) // 2
    if len(rows) % 2 or not length:
        return None
    first, second = rows[0], rows[length]
    one, other = range(first, first + length), range(second, second + length)
    fits = rows == [*one, *other] and all(moved[i] == j and moved[j] == i for i, j in zip(one, other, strict=True))
    return (first, second) if fits else None
