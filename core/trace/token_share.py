"""Say which tokens carry a cell's spread, and what its ratio is without them. It finds no spikes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.model.stages import Place, scope_positions
from core.system.arrays import Floats, Ints
from core.trace.grid import Cells, divide
from core.trace.stats import TokenStats, merge_moments

MAIN_SHARE = 0.5  # tokens with more than half of the spread carry it
FEW_SHARE = 0.25  # of a token's sum of squares in its largest channel, from here on: the value is in few channels
RUN = 3           # tokens of one id after the first, from here on: they are first tokens as well


@dataclass(frozen=True, slots=True)
class TokenShare:
    """The tokens with the largest share of a cell's squared deviations from the cell's mean.

    tokens: in order; several only where they are the first tokens. peak: the largest of them.
    without: the ratio to the layer before with those tokens left out of both layers; None where there is none.
    channel_share: of the peak token's sum of squares, what its largest channel has.
    """

    tokens: tuple[int, ...]
    peak: int
    share: float
    n_token: int
    without: float | None
    channel_share: float

    @property
    def is_main(self) -> bool:
        """Whether they carry more than half of the cell."""
        return self.share > MAIN_SHARE


def largest_share(
    cells: Cells, carried: Place, scope: str, first: int = 1, over: tuple[Place, Place | None] | None = None
) -> TokenShare | None:
    """Find the tokens that carry a cell; None without per-token values.

    first: how many first tokens the prompt has (first_tokens). over: a place and the one before it, whose ratio without
    the carrier is wanted.
    """
    cell = cells[carried]
    if not isinstance(cell, TokenStats):
        return None
    rows = _rows(cell, scope)
    if len(rows) == 0:
        return None
    n_T, mean_T, m2_T = cell.finite_T[rows], cell.rows["mean"][rows], cell.rows["m2"][rows]
    _, mean, m2 = merge_moments(n_T, mean_T, m2_T)
    part_T = np.where(n_T > 0, m2_T + n_T * (mean_T - mean) ** 2, 0.0)
    share_T = part_T / m2 if m2 > 0 else np.zeros(len(rows))
    tokens_T = cell.first + rows
    chosen = _chosen(share_T, tokens_T, first)
    peak = int(np.argmax(np.where(chosen, share_T, -1.0)))
    tokens = tuple(int(t) for t in tokens_T[chosen])
    without = None
    if over is not None and over[1] is not None and len(tokens) < len(rows):
        without = divide(*(_std_without(cells, p, scope, tokens) for p in over if p is not None))
    row = cell.rows[rows[peak]]
    size = max(abs(float(row["min"])), abs(float(row["max"]))) if n_T[peak] else 0.0
    few = size * size / float(row["sumsq"]) if size else 0.0
    return TokenShare(tokens, int(tokens_T[peak]), float(share_T[chosen].sum()), len(rows), without, few)


def first_tokens(ids: Sequence[int]) -> int:
    """Count the tokens that are first ones: the leading run of one id, or the first and a long run of one after it."""
    run = _run(ids, 0)
    after = _run(ids, 1) if run == 1 else 0
    return max(1, 1 + after if after >= RUN else run)


def main_token(found: TokenShare | None) -> int | None:
    """Return the token that carries most of the cell, the largest of several; None where none do."""
    return found.peak if found is not None and found.is_main else None


def share_phrase(found: TokenShare | None, scope: str, carried: str | None = None) -> str:
    """Write a token's share in words; carried: what it carries, where that is not the cell itself."""
    if found is None:
        return "no per-token values: which token carries it is unknown"
    if found.n_token == 1:
        return f"token {found.peak} is the only one at scope {scope}"
    many = len(found.tokens) > 1
    who = f"tokens {found.tokens[0]} to {found.tokens[-1]}" if many else f"token {found.peak}"
    verb = "carried" if carried is not None else "carry" if many else "carries"
    without = f"; {times_text(found.without)} x without {'them' if many else 'it'}" if found.without is not None else ""
    return f"{who} {verb} {_percent(found.share)} % of {carried or 'it'}{without}"


def times_text(times: float) -> str:
    """Write a multiple: 0.9, 17.2, 246, 0.021."""
    return f"{times:.0f}" if times >= 100 else f"{times:.1f}" if times >= 0.5 else f"{times:.2g}"


def std_of(cell: TokenStats, tokens: Collection[int]) -> float | None:
    """Return the sample standard deviation over some tokens; None where they have fewer than two values."""
    return _std(cell, np.array([t - cell.first for t in tokens if cell.first <= t < cell.first + cell.n_token], int))


def _chosen(share_T: Floats, tokens_T: Ints, first: int) -> npt.NDArray[np.bool_]:
    """Choose the first token where it carries the cell, else the first tokens together, else the largest token."""
    for n_first in (1, first):
        chosen: npt.NDArray[np.bool_] = tokens_T < n_first
        if share_T[chosen].sum() > MAIN_SHARE:
            return chosen
    alone: npt.NDArray[np.bool_] = np.arange(len(share_T)) == np.argmax(share_T)
    return alone


def _run(ids: Sequence[int], start: int) -> int:
    """Count how often the id at start comes again and again, itself included."""
    end = start
    while end < len(ids) and ids[end] == ids[start]:
        end += 1
    return end - start


def _percent(share: float) -> int:
    return min(int(100 * share), 100)  # down: 100 only where it is all


def _rows(cell: TokenStats, scope: str) -> Ints:
    positions = scope_positions(scope, cell.first + cell.n_token)
    return np.arange(max(positions.start - cell.first, 0), max(positions.stop - cell.first, 0))


def _std_without(cells: Cells, place: Place, scope: str, tokens: Collection[int]) -> float | None:
    """Return the cell's std at the scope with some tokens left out."""
    cell = cells.get(place)
    if not isinstance(cell, TokenStats):
        return None
    rows = _rows(cell, scope)
    return _std(cell, rows[~np.isin(rows + cell.first, list(tokens))])


def _std(cell: TokenStats, rows: Ints) -> float | None:
    n, _, m2 = merge_moments(cell.finite_T[rows], cell.rows["mean"][rows], cell.rows["m2"][rows])
    return math.sqrt(m2 / (n - 1)) if n > 1 else None
