"""Say which token carries a cell's spread, and what its ratio is without that token. It finds no spikes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.model.stages import Place, scope_positions
from core.system.arrays import Ints
from core.trace.grid import Cells, divided
from core.trace.marks import WATCH_RATIO
from core.trace.stats import TokenStats, merge_moments

MAIN_SHARE = 0.5  # a token with more than half of the spread carries it


@dataclass(frozen=True, slots=True)
class Carrier:
    """The token with the largest share of a cell's squared deviations from the cell's mean.

    without: the ratio to the layer before with that token left out of both layers; None where there is none.
    """

    token: int
    share: float
    n_token: int
    without: float | None

    def verdict(self) -> str:
        """Say what kind of spike the shares speak for; "" where they do not speak."""
        if self.without is None:
            return ""
        if self.share <= MAIN_SHARE or self.without >= WATCH_RATIO:
            return ": not one token's doing"
        return ": looks like the model" if self.token == 0 else ": one token's doing, and not the first's"


def carrier(cells: Cells, carried: Place, place: Place | None, scope: str) -> Carrier | None:
    """Find the token that carries a cell, and the ratio of place without it; None without per-token values."""
    cell = cells[carried]
    if not isinstance(cell, TokenStats):
        return None
    rows = _rows(cell, scope)
    if len(rows) == 0:
        return None
    n_T, mean_T, m2_T = cell.finite_T[rows], cell.rows["mean"][rows], cell.rows["m2"][rows]
    _, mean, m2 = merge_moments(n_T, mean_T, m2_T)
    part_T = np.where(n_T > 0, m2_T + n_T * (mean_T - mean) ** 2, 0.0)
    best = int(np.argmax(part_T))
    token = cell.first + int(rows[best])
    without = None
    if place is not None and place[0] and len(rows) > 1:
        before = (place[0] - 1, place[1])
        without = divided(*(_std_without(cells, p, scope, token) for p in (place, before)))
    return Carrier(token, float(part_T[best]) / m2 if m2 > 0 else 0.0, len(rows), without)


def carrier_token(found: Carrier | None) -> int | None:
    """Return the token that carries most of the cell; None where no token does."""
    return found.token if found is not None and found.share > MAIN_SHARE else None


def carrier_phrase(found: Carrier | None, scope: str, carried: str | None = None) -> str:
    """Tell the carrier in words; carried: what it carries, where that is not the cell itself."""
    if found is None:
        return "no per-token values: which token carries it is unknown"
    if found.n_token == 1:
        return f"token {found.token} is the only one at scope {scope}"
    verb = "carries" if carried is None else "carried"
    without = f"; {times_text(found.without)} x without it" if found.without is not None else ""
    return f"token {found.token} {verb} {_percent(found.share)} % of {carried or 'it'}{without}"


def times_text(times: float) -> str:
    """Write a multiple: 0.9, 17.2, 246, 0.021."""
    return f"{times:.0f}" if times >= 100 else f"{times:.1f}" if times >= 0.5 else f"{times:.2g}"


def _percent(share: float) -> int:
    return min(int(100 * share), 100)  # down: 100 only where it is all


def _rows(cell: TokenStats, scope: str) -> Ints:
    positions = scope_positions(scope, cell.first + cell.n_token)
    return np.arange(max(positions.start - cell.first, 0), max(positions.stop - cell.first, 0))


def _std_without(cells: Cells, place: Place, scope: str, token: int) -> float | None:
    """Return the cell's std at the scope with one token left out."""
    cell = cells.get(place)
    if not isinstance(cell, TokenStats):
        return None
    rows = _rows(cell, scope)
    rows = rows[rows != token - cell.first]
    n, _, m2 = merge_moments(cell.finite_T[rows], cell.rows["mean"][rows], cell.rows["m2"][rows])
    return math.sqrt(m2 / (n - 1)) if n > 1 else None
