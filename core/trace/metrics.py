"""The statistics of a stage as a table: what each is called, its unit and formula, where it shows. It measures nothing.

A row here is a column of stats.csv and tokens.csv (in this order), a line of a stage's page, a metric of the grid and a
row of README. No numpy: a screen reads it first. Their numbers: stats.py.
"""

from __future__ import annotations

from dataclasses import dataclass

X, VALUES, TOKEN, CHANNEL, TIMES = "as x", "values", "token", "channel", "times"  # units


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of the values at a scope; its number is the field of that name in Stats.

    formula: x are the finite values, n of them. is_whole: a whole number, not a float. is_metric: the grid shows it.
    is_size: never negative and of a size, so that the quotient of two says something.
    """

    name: str
    unit: str
    formula: str
    is_whole: bool = False
    is_metric: bool = True
    is_size: bool = False

    @property
    def is_place(self) -> bool:
        """Whether it says where, not how much."""
        return self.unit in (TOKEN, CHANNEL)


STATS = (
    Statistic("count", VALUES, "n + nan + inf", is_whole=True, is_metric=False),
    Statistic("mean", X, "sum x / n"),
    Statistic("std", X, "sqrt(sum (x - mean)^2 / (n - 1))", is_size=True),
    Statistic("min", X, "min x"),
    Statistic("max", X, "max x"),
    Statistic("absmax", X, "max(-min, max)", is_size=True),
    Statistic("l2", X, "sqrt(sum x^2)", is_size=True),
    Statistic("nan", VALUES, "how many are NaN", is_whole=True),
    Statistic("inf", VALUES, "how many are Inf or -Inf", is_whole=True),
    Statistic("zero", VALUES, "how many are 0", is_whole=True),
    Statistic("peak_token", TOKEN, "where absmax is, the first of equals", is_whole=True, is_metric=False),
    Statistic("peak_channel", CHANNEL, "the same", is_whole=True, is_metric=False),
    Statistic("nan_token", TOKEN, "where the first NaN is", is_whole=True, is_metric=False),
    Statistic("nan_channel", CHANNEL, "the same", is_whole=True, is_metric=False),
)
RATIO = Statistic("ratio", TIMES, "std / std of the layer before", is_size=True)  # of two cells: in the grid alone
NUMBERS = tuple(s.name for s in STATS if not s.is_place)  # a line each on a stage's page
SIZES = tuple(s.name for s in STATS if s.is_size)
FIRST_METRIC = "std"
METRICS = (FIRST_METRIC, *(s.name for s in (*STATS, RATIO) if s.is_metric and s.name != FIRST_METRIC))


def markdown() -> str:
    """The statistics as a table for README."""
    rows = (f"| {s.name} | {s.unit} | {s.formula} |" for s in (*STATS, RATIO))
    return "\n".join(["| statistic | unit | formula |", "|---|---|---|", *rows])
