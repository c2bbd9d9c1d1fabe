"""Find a tensor under another name in the other file: another layer's, gate for up; and one that is transposed.

Compared by a few rows first, which costs little beside a reading of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.audit.weights.survey import read_some, row_shape
from core.formats.model_file import ModelFile
from core.quant.weight import Weight

SAMPLED = 8  # rows


def cousin_of(weight: Weight, file: ModelFile, rows: Sequence[int], tolerance: float) -> str | None:
    """Name the tensor of the file, of another name, that equals this one in these rows; its own role is tried first."""
    role = weight.name.split(".")[-2:]
    names = [n for n, w in file.weights.items() if n != weight.name and w.shape == weight.shape]
    sample = _sample(rows)
    mine = read_some(weight, sample)
    for name in sorted(names, key=lambda n: n.split(".")[-2:] != role):
        if is_near(mine, read_some(file.weights[name], sample), tolerance):
            return name
    return None


def equals_in(one: Weight, other: Weight, rows: Sequence[int], tolerance: float) -> bool:
    """Whether two tensors of one shape are near in a sample of these rows."""
    sample = _sample(rows)
    return one.shape == other.shape and is_near(read_some(one, sample), read_some(other, sample), tolerance)


def is_near(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether |y - x| is at most tolerance x |x|, and x is not 0 or constant."""
    size, gap = float(x.double().square().sum()), float((y - x).double().square().sum())
    return size > 0 and float(x.max()) > float(x.min()) and gap <= tolerance**2 * size


def is_transposed(a: Weight, b: Weight, read: Callable[[Sequence[int]], Tensor], tolerance: float) -> bool:
    """Whether B is A turned over and written in A's shape. read: these columns of A [R, n], in one reading."""
    n_row, n_col = row_shape(a)
    if len(a.shape) != 2 or min(n_row, n_col) < 2:
        return False
    rows = _sample(range(n_row))[:4]
    flat = torch.tensor(rows)[:, None] * n_col + torch.arange(n_col)  # places in A.T as it is written
    column, row = flat // n_row, flat % n_row
    columns = sorted(set(column.view(-1).tolist()))
    at = torch.searchsorted(torch.tensor(columns), column)
    return is_near(read(columns)[row, at], read_some(b, rows), tolerance)


def _sample(rows: Sequence[int]) -> list[int]:
    step = max(1, len(rows) // SAMPLED)
    return list(rows[::step][:SAMPLED])
