"""Say whether rounding explains that B's tensor is not A's: it leaves the slope of B on A at 1, everywhere.

Of the tensor, of each row, of each group of 32 in a row and of each run of columns. A fault changes it: a factor, a
sign, zeros, other rows. The limits were measured on trained weights (SmolLM2, Gemma 3) and heavy tails, requantised by
gguf-py and by llama.cpp with and without importance weights, forth and back and from a common original: no limit is
nearer than 1.2 times the worst of them. `python -m tests.bench.slope_rates` repeats it.
Slopes are medians where they can be, for a quantiser may clip one large weight that it holds unimportant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.audit.weights.survey import GROUP, Chunk, Sums, chunks, row_shape
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

SIZE_ROOM = 2.0      # over the types' error, of a tensor: heavier tails than normal cost up to 1.9 times
ROW_TOLERANCE = 8.0       # of its worst row: 4 on trained weights, 7.7 on heavy tails with importance weights
FAINT_ROW = 0.1          # of the root mean square row: a fainter row is measured against that
SLANT, MOST_SLANT = 0.6, 0.035  # slope of a tensor, times the error, and at most: 0.02 where one grid meets another
SHRUNK = 1.5         # times the error squared: the least error is had at a slope of - error squared
TRUNCATED = 3e-3     # slope of a float type that was cut, not rounded
ROW_SPREAD, GROUP_SPREAD, COLUMN_SPREAD = 12.0, 11.0, 25.0  # standard deviations of rounding; worst seen 9.3, 9.2, 19
CLIPPED_GROUP, CLIPPED_COLUMN = 0.42, 0.2  # slope of a group, of columns, where importance weights clip others
COHERENT = 1.3       # times what is left of a group's gap: a factor leaves less than a level that was badly chosen
SCALED = 4e-3        # slope beside a gap three times smaller: a factor, not rounding
BIAS = 0.5           # times the error: the mean of the gap over the root mean square weight; worst seen 0.11
EVEN = 0.9           # of the gap: its mean's share where a constant was added; 0.75 where values of one sign are cut
SHARED = 0.2         # of the strongest of 8 groups: what their shared scale leaves to a faint one
EXACT = 4.0          # times the rest of the gap: a factor of a group, in a tensor that is else as it was
LEVELS = 3.0         # times the error of the group's largest weight: beyond a level of its grid
MOST_ODD = 4096      # groups that are looked at one by one, of a chunk


@dataclass(frozen=True, slots=True)
class Noise:
    """What rounding may leave. error: of both types, relative; lost: the variance of scales too small for float16.

    even: one scale serves the whole tensor; same_type: both files hold one type.
    """

    error: float
    lost: float = 0.0
    even: bool = False
    same_type: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What a comparison of two tensors found. rows and columns: sums along an axis; slope: of the tensor, a median.

    faults: what rounding does not do, of size, tensor, row, block, columns, offset and finite; empty: it explains all.
    odd_rows, odd_groups (row, group), unlike (rows with a NaN or Inf on one side): where, in order.
    """

    rows: Sums = field(repr=False)
    columns: Sums = field(repr=False)
    slope: float
    faults: tuple[str, ...]
    odd_rows: tuple[int, ...] = field(default=(), repr=False)
    odd_groups: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    unlike: tuple[int, ...] = ()

    @property
    def relative(self) -> float:
        """|B - A| / |A|; infinite where a value is not finite on one side, or A is 0."""
        gap, size = float(self.rows.gg.sum()), float(self.rows.aa.sum())
        return math.inf if self.unlike or (gap and not size) else math.sqrt(gap / size) if size else 0.0

    @property
    def worst_row(self) -> tuple[int, float]:
        """The row furthest off, and |B - A| / |A| of it."""
        if self.unlike:
            return self.unlike[0], math.inf
        off = self.rows.gg / self.rows.aa.clamp(min=max(FAINT_ROW**2 * float(self.rows.aa.mean()), 1e-300))
        row = int(off.argmax())
        return row, math.sqrt(float(off[row]))


def noise_between(a: Weight, b: Weight) -> Noise:
    """What the rounding of two types may leave; nothing where nobody knows one of them."""
    quants = [QUANTS[w.quant] for w in (a, b)]
    errors = [q.error for q in quants if q.error is not None]
    return Noise(math.hypot(*errors) if len(errors) == 2 else 0.0, sum((q.half_steps * 2.0**-25) ** 2 for q in quants),
                 even=any(q.whole for q in quants), same_type=a.quant == b.quant)


def survey(a: Weight, b: Weight, noise: Noise, cancelled: IsCancelled) -> Survey:
    """Compare two tensors of one shape; what was not read when it was cancelled is as if equal."""
    n_row, n_col = row_shape(a)
    rows = Sums(*(torch.zeros(n_row, dtype=torch.float64) for _ in range(5)))
    columns = Sums(*(torch.zeros(n_col, dtype=torch.float64) for _ in range(5)))
    slopes, faults = [], set()
    odd_rows: list[int] = []
    odd_groups: list[tuple[int, int]] = []
    unlike: list[int] = []
    for chunk in chunks(a, b, cancelled):
        _add(chunk, rows, columns)
        unlike += [chunk.start + i for i in chunk.unlike]
        if not bool(chunk.groups.gg.any()):
            continue
        found = _judge(chunk, noise, n_row)
        slopes.append((chunk.x.numel(), found.slope))
        faults |= found.faults
        odd_rows += found.rows
        odd_groups += found.groups
    slope = sum(n * s for n, s in slopes) / sum(n for n, _ in slopes) if slopes else 0.0
    whole = Survey(rows, columns, slope, (), tuple(odd_rows), tuple(odd_groups), tuple(unlike))
    return Survey(rows, columns, slope, tuple(sorted(faults | _whole_faults(whole, noise))), whole.odd_rows,
                  whole.odd_groups, whole.unlike)


@dataclass(frozen=True, slots=True)
class _Found:
    slope: float
    faults: set[str]
    rows: list[int]
    groups: list[tuple[int, int]]


def _add(chunk: Chunk, rows: Sums, columns: Sums) -> None:
    stop = chunk.start + len(chunk.x)
    for whole, part in ((rows.aa, chunk.groups.aa), (rows.bb, chunk.groups.bb), (rows.ag, chunk.groups.ag),
                        (rows.gg, chunk.groups.gg), (rows.g, chunk.groups.g)):
        whole[chunk.start:stop] = part.sum(1)
    for whole, part in ((columns.aa, chunk.columns.aa), (columns.bb, chunk.columns.bb), (columns.ag, chunk.columns.ag),
                        (columns.gg, chunk.columns.gg), (columns.g, chunk.columns.g)):
        whole += part


def _whole_faults(found: Survey, noise: Noise) -> set[str]:
    """What the sums over the whole tensor show: its size, its worst row, and a constant added."""
    n, aa = len(found.rows.aa) * len(found.columns.aa), float(found.rows.aa.sum())
    faults = {"finite"} if found.unlike else set()
    lost = noise.lost * n
    if max(0.0, float(found.rows.gg.sum()) - lost) > (SIZE_ROOM * noise.error) ** 2 * aa:
        faults.add("size")
    per_row = found.rows.aa.clamp(min=FAINT_ROW**2 * aa / len(found.rows.aa))
    if bool((found.rows.gg - noise.lost * len(found.columns.aa) > (ROW_TOLERANCE * noise.error) ** 2 * per_row).any()):
        faults.add("size")
    spread = math.hypot(noise.error * math.sqrt(aa / n), math.sqrt(noise.lost))
    total, gg = float(found.rows.g.sum()), float(found.rows.gg.sum())
    is_even = n >= GROUP and total**2 > EVEN * n * gg
    if is_even or abs(total) > (BIAS * n + ROW_SPREAD * math.sqrt(n)) * spread:
        faults.add("offset")
    return faults


def _judge(chunk: Chunk, noise: Noise, n_row: int) -> _Found:
    """Judge a chunk's slopes against its own median slope, and that against 0."""
    sums, n, live = chunk.groups, chunk.x.numel(), chunk.groups.aa > 0
    slopes = sums.slope
    slope = float(slopes[live].median()) if bool(live.any()) else 0.0
    size = float(sums.aa.sum())
    faint = math.sqrt(noise.lost * n / max(size, 1e-300))  # what scales too small for float16 add to the error
    error = math.hypot(noise.error, faint)
    rest = math.sqrt(max(0.0, float((sums.gg - 2 * slope * sums.ag + slope**2 * sums.aa).sum())) / max(size, 1e-300))
    faults = set()
    above = min(SLANT * error, MOST_SLANT) + faint + 8 * error / math.sqrt(n) + 1e-6
    below = max(above, SHRUNK * error**2, min(error, TRUNCATED))
    if not -below <= slope <= above or abs(slope) > max(SCALED, 3 * rest, faint):
        faults.add("tensor")
    spread_G = _spread(chunk, noise)
    rows = _odd_rows(chunk, slopes, spread_G, slope, error) if n_row > 1 else []
    across = torch.where(live, slopes, torch.nan).nanmedian(0).values.nan_to_num(slope) - slope
    limit = COLUMN_SPREAD * error / math.sqrt(GROUP * len(chunk.x)) + min(4 * error, CLIPPED_COLUMN) + 0.3 * error**2
    if len(chunk.x) >= GROUP and bool((across.abs() > limit + 1e-6).any()):
        faults.add("columns")
    groups = _odd_groups(chunk, spread_G, slope, error)
    if noise.same_type and float((sums.gg > 0).double().mean()) < 0.5:
        groups += _altered_groups(chunk, error)
    faults |= {"row"} if rows else set()
    faults |= {"block"} if groups else set()
    return _Found(slope, faults, rows, sorted(set(groups)))


def _spread(chunk: Chunk, noise: Noise) -> Tensor:
    """Standard deviation of one weight's rounding in each group [r, G]: of its own level, or of what shares a scale."""
    n_row, n_group = chunk.groups.aa.shape
    level = (chunk.groups.aa / GROUP).sqrt()
    n_block = -(-n_group // 8)
    blocks = torch.nn.functional.pad(level, (0, n_block * 8 - n_group)).view(n_row, n_block, 8)
    shared = blocks.amax(2, keepdim=True).expand(n_row, n_block, 8).reshape(n_row, -1)[:, :n_group] * SHARED
    level = torch.maximum(level, shared)
    if noise.even:
        level = level.clamp(min=float(level.square().mean().sqrt()))
    return torch.hypot(noise.error * level, torch.tensor(math.sqrt(noise.lost), dtype=torch.float64))


def _odd_rows(chunk: Chunk, slopes: Tensor, spread_G: Tensor, slope: float, error: float) -> list[int]:
    """Rows whose median slope over their groups is another than the chunk's."""
    aa = chunk.groups.aa
    row = torch.where(aa > 0, slopes, torch.nan).nanmedian(1).values.nan_to_num(slope)
    limit = ROW_SPREAD * spread_G.square().mean(1).sqrt() / aa.sum(1).clamp(min=1e-300).sqrt() + 0.3 * error**2
    return [chunk.start + int(i) for i in ((row - slope).abs() > limit + 1e-6).nonzero()[:, 0]]


def _odd_groups(chunk: Chunk, spread_G: Tensor, slope: float, error: float) -> list[tuple[int, int]]:
    """Groups of another slope, by least squares and by the weighted median alike; and gaps where A is all 0."""
    sums = chunk.groups
    limit = torch.maximum(GROUP_SPREAD * spread_G / sums.aa.clamp(min=1e-300).sqrt(),
                          torch.tensor(min(CLIPPED_GROUP, 10 * error), dtype=torch.float64)) + 1e-6
    off = sums.slope - slope
    coherent = off.square() * sums.aa > COHERENT**2 * sums.rest
    dead = (sums.aa == 0) & (sums.gg > GROUP * (5 * spread_G) ** 2)
    found = [(chunk.start + int(i), int(j)) for i, j in dead.nonzero()[:MOST_ODD]]
    rows, groups = ((off.abs() > limit) & coherent & (sums.aa > 0)).nonzero()[:MOST_ODD].unbind(1)
    if len(rows):
        again = _median_slope(*chunk.elements(rows, groups)).double() - slope
        off, limit = off[rows, groups], limit[rows, groups]
        sure = (again.sign() == off.sign()) & (again.abs() > limit)
        found += [(chunk.start + int(i), int(j)) for i, j in zip(rows[sure], groups[sure], strict=True)]
    return found


def _median_slope(x: Tensor, y: Tensor) -> Tensor:
    """The median of gap / A in each group, weighted by |A|, of which no weight counts more than 1.5 mean ones."""
    weight = x.abs()
    weight = torch.minimum(weight, 1.5 * weight.mean(1, keepdim=True))
    ratio, order = ((y - x) / torch.where(x == 0, 1.0, x)).sort(1)
    weight = weight.gather(1, order).cumsum(1)
    middle = (weight >= weight[:, -1:] / 2).float().argmax(1, keepdim=True)
    return ratio.gather(1, middle)[:, 0]


def _altered_groups(chunk: Chunk, error: float) -> list[tuple[int, int]]:
    """Of a tensor that is else as it was: groups times a factor, plus a constant, or with a weight levels away."""
    sums = chunk.groups
    rows, groups = (sums.gg > 0).nonzero()[:MOST_ODD].unbind(1)
    slope, rest, size, gap, mean = (v[rows, groups] for v in (sums.slope, sums.rest, sums.aa, sums.gg, sums.g))
    x, y = chunk.elements(rows, groups)
    level = (size / GROUP).sqrt()
    odd = (slope.abs() > 0.02) & (slope.square() * size > EXACT**2 * rest)
    odd |= (mean.square() > 0.95 * GROUP * gap) & (gap / GROUP > (0.02 * level) ** 2)
    odd |= (y - x).abs().amax(1) > LEVELS * error * x.abs().amax(1)
    return [(chunk.start + int(i), int(j)) for i, j in zip(rows[odd], groups[odd], strict=True)]
