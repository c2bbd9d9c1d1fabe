"""Statistics of one stage, kept per token and merged exactly, so that a scope is a view. No torch: taps.py measures.

Definitions are those of `apr trace` (ActivationStats): finite values only, sample standard deviation (n - 1).
Missing is None: n = 0 gives None everywhere, n = 1 a std of None.
Source of the merge: Chan, Golub, LeVeque 1979, parallel moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.model.stages import scope_positions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOMENTS = ("mean", "m2", "min", "max", "sumsq")  # of a token's finite values; the order of statistics.cpp
COUNTS = ("nan", "inf", "zero", "peak_channel", "nan_channel")


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a stage at one scope: count of all values, nan, inf and zero among them, the rest of finite values.

    A statistics-only source (an imported table) leaves what it does not say None.
    """

    count: int | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    absmax: float | None = None
    l2: float | None = None
    nan: int | None = None
    inf: int | None = None
    zero: int | None = None
    peak_token: int | None = None
    peak_channel: int | None = None
    nan_token: int | None = None
    nan_channel: int | None = None


@dataclass(frozen=True, slots=True)
class Massive:
    """Values far outside their cell: |x| over 100 and over 1000 times the cell's median |x|."""

    median: float
    places: tuple[tuple[int, int, float], ...]  # (token, channel, value), the largest of each channel


@dataclass(frozen=True, slots=True)
class Factors:
    """Why a product grew: its two factors where |product| peaks, and their correlation over that token's channels."""

    token: int
    channel: int
    left: float
    right: float
    correlation: float | None


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Statistics of a stage for each token. Every column is [T]; a peak or NaN channel is -1 where there is none.

    Those of the stages that were measured together lie in one table. An array of its own for each of hundreds of stages
    would cost more than measuring it, and its few bytes would lie in the freed block that the next values need.
    """

    width: int  # values a token has
    first: int  # position of the first row: logits have the last token only
    table: Floats  # [stages, 2, 5, T]: MOMENTS, and COUNTS as whole numbers in the same bytes; see packed()
    row: int  # this stage's in the table
    top: tuple[tuple[int, int, float], ...] = ()  # (channel, token, value), the largest |x| of the 8 largest channels
    massive: Massive | None = None  # None: no value is that far out
    factors: Factors | None = None  # of a product stage
    published: Mapping[str, Stats] | None = None  # what a bundle states for its scopes, to the last bit

    @property
    def mean(self) -> Floats:
        """Mean of the finite values."""
        return self.table[self.row, 0, 0]  # type: ignore[no-any-return]

    @property
    def m2(self) -> Floats:
        """Sum of squared deviations from the mean."""
        return self.table[self.row, 0, 1]  # type: ignore[no-any-return]

    @property
    def min(self) -> Floats:
        """Smallest value; +inf where nothing is finite."""
        return self.table[self.row, 0, 2]  # type: ignore[no-any-return]

    @property
    def max(self) -> Floats:
        """Largest value; -inf where nothing is finite."""
        return self.table[self.row, 0, 3]  # type: ignore[no-any-return]

    @property
    def sumsq(self) -> Floats:
        """Sum of squares."""
        return self.table[self.row, 0, 4]  # type: ignore[no-any-return]

    @property
    def nan(self) -> Ints:
        """How many are NaN."""
        return self.table[self.row, 1, 0].view(np.int64)  # type: ignore[no-any-return]

    @property
    def inf(self) -> Ints:
        """How many are infinite."""
        return self.table[self.row, 1, 1].view(np.int64)  # type: ignore[no-any-return]

    @property
    def zero(self) -> Ints:
        """How many are zero."""
        return self.table[self.row, 1, 2].view(np.int64)  # type: ignore[no-any-return]

    @property
    def peak_channel(self) -> Ints:
        """Channel of the largest size."""
        return self.table[self.row, 1, 3].view(np.int64)  # type: ignore[no-any-return]

    @property
    def nan_channel(self) -> Ints:
        """Channel of the first NaN."""
        return self.table[self.row, 1, 4].view(np.int64)  # type: ignore[no-any-return]

    def at(self, scope: str) -> Stats | None:
        """Merge the rows that the scope covers; None where it covers none."""
        if self.published is not None and scope in self.published:
            return self.published[scope]
        wanted = scope_positions(scope, self.first + len(self.mean))
        rows = slice(max(wanted.start - self.first, 0), max(wanted.stop - self.first, 0))
        if len(self.mean[rows]) == 0:
            return None
        return self._merged(rows)

    def _merged(self, rows: slice) -> Stats:
        n_T = self.width - self.nan[rows] - self.inf[rows]
        tokens = len(n_T)
        n, mean, m2 = merge_moments(n_T, self.mean[rows], self.m2[rows])
        counts = {
            "count": self.width * tokens, "nan": int(self.nan[rows].sum()), "inf": int(self.inf[rows].sum()),
            "zero": int(self.zero[rows].sum()),
        }
        bad = np.flatnonzero(self.nan[rows])
        where = {}
        if len(bad):
            i = rows.start + int(bad[0])
            where = {"nan_token": self.first + i, "nan_channel": int(self.nan_channel[i])}
        if n == 0:
            return Stats(**counts, **where)
        has = n_T > 0
        low, high = float(self.min[rows].min()), float(self.max[rows].max())
        absmax_T = np.maximum(np.abs(self.min[rows]), np.abs(self.max[rows]))
        peak = int(np.argmax(np.where(has, absmax_T, -1.0)))
        return Stats(
            **counts, **where, mean=mean, std=math.sqrt(m2 / (n - 1)) if n > 1 else None, min=low, max=high,
            absmax=float(absmax_T[peak]), l2=math.sqrt(float(self.sumsq[rows][has].sum())),
            peak_token=self.first + rows.start + peak, peak_channel=int(self.peak_channel[rows.start + peak]),
        )


def packed(moments: npt.ArrayLike, counts: npt.ArrayLike) -> Floats:
    """Make the table of one stage: the columns of MOMENTS and those of COUNTS."""
    whole = np.ascontiguousarray(counts, np.int64)
    return np.stack([np.asarray(moments, np.float64), whole.view(np.float64)])[None]


def merge_moments(n_T: Ints, mean_T: Floats, m2_T: Floats) -> tuple[int, float, float]:
    """Merge (n, mean, m2) of groups into one; groups of 0 values take no part. One group comes back to the last bit."""
    has = n_T > 0
    n_T, mean_T, m2_T = n_T[has], mean_T[has], m2_T[has]
    n = int(n_T.sum())
    if n == 0:
        return 0, 0.0, 0.0
    base = float(mean_T[0])
    mean = base + float((n_T * (mean_T - base)).sum() / n)
    return n, mean, float(m2_T.sum() + (n_T * (mean_T - mean) ** 2).sum())


@dataclass(frozen=True, slots=True)
class ScopeStats:
    """Statistics that a source gives for whole scopes only; no token can be told from another."""

    scopes: Mapping[str, Stats]

    def at(self, scope: str) -> Stats | None:
        """Return the scope's statistics; None where the source does not have that scope."""
        return self.scopes.get(scope)


Cell = TokenStats | ScopeStats
