"""Statistics of one stage, kept per token and merged exactly, so that a scope is a view. No torch: taps.py measures.

Each statistic has a row in metrics.py, where its formula stands. Definitions are those of `apr trace`
(ActivationStats): finite values only, sample standard deviation (n - 1).
Missing is None: n = 0 gives None everywhere, n = 1 a std of None where other values were not finite; a cell of one
value has a std of 0, as in `apr trace`.
Source of the merge: Chan, Golub, LeVeque 1979, parallel moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.kernels.cpu.build import TOP_CHANNELS
from core.model.stages import scope_positions
from core.system.arrays import Floats, Ints, Rows

MASSIVE_SIZE, MASSIVE_MULTIPLE, MASSIVE_CHANNELS = 100.0, 1000.0, 4  # DESIGN: massive activation
ROW = np.dtype([  # of a token, as it is measured; struct Row of statistics.cpp
    ("mean", np.float64),        # of the finite values
    ("m2", np.float64),          # sum of squared deviations from the mean
    ("min", np.float64),         # +inf where nothing is finite
    ("max", np.float64),         # -inf where nothing is finite
    ("sumsq", np.float64),       # sum of squares
    ("nan", np.int64),
    ("inf", np.int64),
    ("zero", np.int64),
    ("peak_channel", np.int64),  # of the largest |x|; -1 where nothing is finite
    ("nan_channel", np.int64),   # of the first NaN; -1 where there is none
])

PEAKS = np.dtype([  # of a stage, what stands out; struct Peaks of statistics.cpp
    ("n", np.int64),             # of the channels with the largest |x|, in order
    ("channel", np.int64, TOP_CHANNELS),
    ("row", np.int64, TOP_CHANNELS),
    ("value", np.float64, TOP_CHANNELS),
    ("n_far", np.int64),         # of massive channels
    ("median", np.float64),
    ("far", np.float64, (MASSIVE_CHANNELS, 3)),  # row, channel, value
    ("factors", np.int64),       # NO_FACTORS, FACTORS_GIVEN or FACTORS_NOT_FINITE
    ("factors_row", np.int64),
    ("factors_channel", np.int64),
    ("left", np.float64),
    ("right", np.float64),
    ("correlation", np.float64),  # NaN where there is none
])
NO_FACTORS, FACTORS_GIVEN, FACTORS_NOT_FINITE = range(3)


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a stage at one scope, in the order of the table STATS.

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
    """Values far outside their cell: |x| over MASSIVE_SIZE and over MASSIVE_MULTIPLE times the cell's median |x|."""

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
class Routes:
    """What a router chose: experts [T, K] by rising id, their weights [T, K], of n experts.

    margin: how far the last chosen one's logit is above the best one left [T]; under 0 where a bias or a group chose,
    None where the logits were not measured beside it.
    """

    n: int
    experts: Ints
    weights: Floats
    margin: Floats | None = None

    @property
    def load(self) -> Ints:
        """How many tokens each expert has [n]."""
        return np.bincount(self.experts.flatten(), minlength=self.n)


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Statistics of a stage for each token.

    The rows of stages that were measured together lie in one table, and what stands out in another, until it is read.
    An array of its own for each of hundreds of stages would cost more than measuring it, and its few bytes would lie in
    the freed block that the next values need.
    """

    width: int   # values a token has
    first: int   # position of the first row: logits have the last token only
    table: Rows  # [stages, T] of ROW
    index: int   # this stage's in the table
    peaks: Rows | None = None       # [stages] of PEAKS; None where they are not known
    routes: Routes | None = None    # of a router's weights
    published: Mapping[str, Stats] | None = None  # what a bundle states for its scopes, to the last bit
    merged: dict[str, Stats | None] = field(default_factory=dict, init=False, repr=False, compare=False)  # asked for

    @property
    def rows(self) -> Rows:
        """The rows of its tokens [T]."""
        rows: Rows = self.table[self.index]
        return rows

    @property
    def top(self) -> tuple[tuple[int, int, float], ...]:
        """(channel, token, value): the largest |x| of the 8 largest channels."""
        if self.peaks is None:
            return ()
        one = self.peaks[self.index]
        n = int(one["n"])
        columns = (one["channel"], one["row"] + self.first, one["value"])
        return tuple(zip(*(column[:n].tolist() for column in columns), strict=True))

    @property
    def massive(self) -> Massive | None:
        """Its massive values, the largest first; None: no value is that far out."""
        if self.peaks is None or not self.peaks["n_far"][self.index]:
            return None
        one = self.peaks[self.index]
        places = ((self.first + int(t), int(c), v) for t, c, v in one["far"][:one["n_far"]].tolist())
        return Massive(float(one["median"]), tuple(sorted(places, key=lambda place: -abs(place[2]))))

    @property
    def factors(self) -> Factors | None:
        """The factors of a product stage."""
        if self.peaks is None or self.peaks["factors"][self.index] != FACTORS_GIVEN:
            return None
        one = self.peaks[self.index]
        left, right, correlation = (float(one[name]) for name in ("left", "right", "correlation"))
        return Factors(self.first + int(one["factors_row"]), int(one["factors_channel"]), left, right,
                       None if math.isnan(correlation) else correlation)

    @property
    def n_token(self) -> int:
        """How many tokens it has."""
        return len(self.rows)

    @property
    def finite_T(self) -> Ints:
        """How many values of each token are finite [T]."""
        return _finite_T(self.width, self.rows)

    def at(self, scope: str) -> Stats | None:
        """Merge the rows that the scope covers; None where it covers none."""
        if self.published is not None and scope in self.published:
            return self.published[scope]
        if scope not in self.merged:
            self.merged[scope] = self._merge(scope)
        return self.merged[scope]

    def _merge(self, scope: str) -> Stats | None:
        wanted = scope_positions(scope, self.first + self.n_token)
        start, stop = (max(end - self.first, 0) for end in (wanted.start, wanted.stop))
        rows = self.rows[start:stop]
        return _merged(self.width, self.first + start, rows) if len(rows) else None


@dataclass(frozen=True, slots=True)
class ScopeStats:
    """Statistics that a source gives for whole scopes only; no token can be told from another.

    samples: (token, channel, value) of the few finite values that it shows besides.
    """

    scopes: Mapping[str, Stats]
    samples: tuple[tuple[int, int, float], ...] = ()

    def at(self, scope: str) -> Stats | None:
        """Return the scope's statistics; None where the source does not have that scope."""
        return self.scopes.get(scope)


Cell = TokenStats | ScopeStats


def peaks_of(
    top: Sequence[tuple[int, int, float]], massive: Massive | None = None, factors: Factors | None = None,
    first: int = 0,
) -> Rows:
    """Return what stands out as PEAKS of one stage, whose row 0 is position first."""
    peaks = np.zeros(1, PEAKS)
    one = peaks[0]
    one["n"] = len(top)
    for i, (channel, token, value) in enumerate(top):
        one["channel"][i], one["row"][i], one["value"][i] = channel, token - first, value
    put_massive(one, massive, first)
    put_factors(one, factors, first)
    return peaks


def put_massive(one: np.void, massive: Massive | None, first: int = 0) -> None:
    """Write massive values into a stage's PEAKS."""
    one["n_far"] = 0 if massive is None else len(massive.places)
    if massive is not None:
        one["median"] = massive.median
        for i, (token, channel, value) in enumerate(massive.places):
            one["far"][i] = token - first, channel, value


def put_factors(one: np.void, factors: Factors | None, first: int = 0) -> None:
    """Write a product's factors into a stage's PEAKS."""
    one["factors"] = NO_FACTORS if factors is None else FACTORS_GIVEN
    if factors is not None:
        one["factors_row"], one["factors_channel"] = factors.token - first, factors.channel
        one["left"], one["right"] = factors.left, factors.right
        one["correlation"] = math.nan if factors.correlation is None else factors.correlation


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


def std_T(cell: TokenStats) -> Floats:
    """Return the sample standard deviation of each token's values; NaN where fewer than two of several are finite."""
    n_T = cell.finite_T
    out: Floats = np.sqrt(np.where(n_T > min(cell.width - 1, 1), cell.rows["m2"], math.nan) / np.maximum(n_T - 1, 1))
    return out


def _finite_T(width: int, rows: Rows) -> Ints:
    finite_T: Ints = width - rows["nan"] - rows["inf"]
    return finite_T


@np.errstate(over="ignore", invalid="ignore")  # of a damaged bundle's numbers
def _merged(width: int, first: int, rows: Rows) -> Stats:
    """Merge rows [T], the first of them at position first."""
    n_T = _finite_T(width, rows)
    n, mean, m2 = merge_moments(n_T, rows["mean"], rows["m2"])
    counts = {"count": width * len(rows), **{name: int(rows[name].sum()) for name in ("nan", "inf", "zero")}}
    bad = np.flatnonzero(rows["nan"])
    where = {}
    if len(bad):
        where = {"nan_token": first + int(bad[0]), "nan_channel": int(rows["nan_channel"][bad[0]])}
    if n == 0:
        return Stats(**counts, **where)
    has = n_T > 0
    low_T, high_T = rows["min"], rows["max"]
    absmax_T = np.maximum(np.abs(low_T), np.abs(high_T))
    peak = int(np.argmax(np.where(has, absmax_T, -1.0)))
    return Stats(
        **counts, **where, mean=mean, std=_spread(counts["count"], n, m2), min=float(low_T.min()),
        max=float(high_T.max()), absmax=float(absmax_T[peak]), l2=math.sqrt(float(rows["sumsq"][has].sum())),
        peak_token=first + peak, peak_channel=int(rows["peak_channel"][peak]),
    )


def _spread(count: int, n: int, m2: float) -> float | None:
    """The sample standard deviation of n finite of count values: one alone spreads by 0, one of several tells none."""
    return math.sqrt(m2 / (n - 1)) if n > 1 else 0.0 if count == 1 else None
