"""Read two tensors of one shape side by side, once, and sum what a comparison needs. No verdict, no words.

Shapes: R rows, C columns, G groups of GROUP columns (the last may be shorter). A vector is one row; the leading
dimensions of experts count as rows. Gap: B - A. Slope: of the gap on A, so B = (1 + slope) A + rest; rounding leaves 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from core.kernels.cpu.decoding import decode_rows
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

GROUP = 32
CHUNK_WEIGHTS = 1 << 20  # decoded at once: 4 MB a side stay near the core


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums along one axis, float64: of A squared, B squared, A x gap, gap squared and the gap itself."""

    aa: Tensor
    bb: Tensor
    ag: Tensor
    gg: Tensor
    g: Tensor

    @property
    def slope(self) -> Tensor:
        """Slope of the gap on A, 0 where A is 0."""
        return self.ag / self.aa.clamp(min=1e-300)

    @property
    def rest(self) -> Tensor:
        """Sum of squares of the gap that its slope on A leaves."""
        return (self.gg - self.slope * self.ag).clamp(min=0.0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of rows, decoded: x of A and y of B [r, C], finite (see unlike), the sums of groups [r, G] and of columns.

    unlike: of these rows, those with a NaN or Inf on one side that the other lacks.
    """

    start: int
    x: Tensor
    y: Tensor
    groups: Sums
    columns: Sums
    unlike: tuple[int, ...]

    def elements(self, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [n, GROUP] of both sides in these groups; what a short group lacks is 0."""
        at = groups[:, None] * GROUP + torch.arange(GROUP)
        inside, at = at < self.x.shape[1], at.clamp(max=self.x.shape[1] - 1)
        return tuple(torch.where(inside, v[rows[:, None], at], 0.0) for v in (self.x, self.y))  # type: ignore[return-value]


def row_shape(weight: Weight) -> tuple[int, int]:
    """Rows and columns as this package counts them."""
    return (prod(weight.shape[:-1]), weight.shape[-1]) if len(weight.shape) > 1 else (1, prod(weight.shape))


def read_rows(weight: Weight, start: int, stop: int) -> Tensor:
    """Decode rows as row_shape counts them: [stop - start, C]."""
    if len(weight.shape) > 1:
        return decode_rows(weight, start, stop)
    return decode_rows(weight, 0, prod(weight.shape)).view(1, -1)


def read_some(weight: Weight, rows: list[int]) -> Tensor:
    """Decode single rows: [n, C]."""
    return torch.cat([read_rows(weight, i, i + 1) for i in rows])


def chunks(a: Weight, b: Weight, cancelled: IsCancelled) -> Iterator[Chunk]:
    """Yield the rows of two tensors of one shape, in order, until cancelled."""
    n_row, n_col = row_shape(a)
    step = max(1, CHUNK_WEIGHTS // max(n_col, 1))
    for start in range(0, n_row, step):
        if cancelled():
            return
        x, y = (read_rows(w, start, min(start + step, n_row)) for w in (a, b))
        gap = y - x
        unlike: tuple[int, ...] = ()
        if not torch.isfinite(gap.sum()):
            x, y, gap, unlike = _made_finite(x, y)
        yield Chunk(start, x, y, *_sums(x, y, gap), unlike)


def _made_finite(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Both sides with 0 where either is not finite, and the rows where it is not on one side alone."""
    finite = torch.isfinite(x) & torch.isfinite(y)
    alike = finite | (x == y) | (torch.isnan(x) & torch.isnan(y))
    x, y = torch.where(finite, x, 0.0), torch.where(finite, y, 0.0)
    return x, y, y - x, tuple(int(i) for i in (~alike).any(1).nonzero()[:, 0])


def _sums(x: Tensor, y: Tensor, gap: Tensor) -> tuple[Sums, Sums]:
    """Of the groups, and of the columns; each product is made once."""
    n_row, n_col = x.shape
    n_group = -(-n_col // GROUP)
    short = n_group * GROUP - n_col

    def summed(values: Tensor) -> tuple[Tensor, Tensor]:
        padded = torch.nn.functional.pad(values, (0, short)) if short else values
        return padded.view(n_row, n_group, GROUP).sum(2).double(), values.sum(0)

    both = [summed(x * x), summed(y * y), summed(x * gap), summed(gap * gap), summed(gap)]
    return Sums(*(groups for groups, _ in both)), Sums(*(columns for _, columns in both))
