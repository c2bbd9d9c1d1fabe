"""What is selected and visible of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from apr_tui.style import STATES
from apr_tui.view_models.number import shade, shorten
from core.model.stages import SCOPES, Place, place_order
from core.trace.finding import ABSENT, BAD, OK, UNKNOWN, WATCH
from core.trace.grid import value
from core.trace.measures import NOISE_MULTIPLE, State

if TYPE_CHECKING:
    from core.proof.verdict import Comparison


PAIR_METRICS = ("rel_l2", "A", "B", "ratio", "inherited", "local", "cosine", "max_abs")
DISTANCES = ("rel_l2", "inherited", "local")  # metrics that a floor bounds
PAIR_MARKS = {State.SAME: OK, State.UNCLEAR: WATCH, State.DIFFERS: BAD, State.ABSENT: ABSENT}


class SideView:
    """One side of a comparison as a grid of stds."""

    def __init__(self, pair: PairView, side: str) -> None:
        self.pair, self.side = pair, side

    @property
    def n_row(self) -> int:
        """Layers of the deeper side."""
        return self.pair.n_row

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """The side's own number, and what the comparison says of the cell."""
        place = (row, column)
        return shorten(self.pair.number(place, self.side), self.pair.mark(place))

    def tone(self, place: Place) -> str:
        """The comparison's style."""
        return self.pair.tone(place)


class PairView:
    """A comparison, running or judged, as switchable metrics over the same grid."""

    def __init__(self, scope: str = "all") -> None:
        self.scope, self.metric = scope, PAIR_METRICS[0]
        self.clear()

    def clear(self) -> None:
        """Forget the numbers: another comparison begins."""
        self.sides: dict[str, Mapping[Place, Any]] = {"A": {}, "B": {}}
        self.comparison: Comparison | None = None
        self._n_layer = 0

    @property
    def known(self) -> Set[Place]:
        """The places that have numbers."""
        return self.sides["A"].keys() | self.sides["B"].keys()

    @property
    def n_row(self) -> int:
        """Layers of the deeper side."""
        return self._n_layer

    def update(self, cells: Mapping[str, Mapping[Place, Any]], n_layer: int | None) -> set[int]:
        """Take a newer snapshot of both sides; returns the rows that changed."""
        rows: set[int] = set()
        for side in self.sides:
            newer = cells.get(side, {})
            rows |= {layer for layer, _ in newer.keys() - self.sides[side].keys() if layer is not None}
            self.sides[side] = newer
        if n_layer is not None and n_layer > self._n_layer:
            self._n_layer = n_layer
            return set(range(n_layer))
        return rows

    def set_result(self, comparison: Comparison) -> None:
        """Take the judged comparison."""
        self.comparison = comparison
        self.sides = {"A": comparison.a.cells, "B": comparison.b.cells}
        self._n_layer = max(comparison.a.n_layer, comparison.b.n_layer, self._n_layer)

    def select(self, scope: str | None = None, metric: str | None = None) -> None:
        """Show another metric, or A, B and ratio at another scope."""
        self.scope, self.metric = scope or self.scope, metric or self.metric

    def number(self, place: Place, metric: str | None = None) -> float | None:
        """One number of a cell: A and B are stds at the scope, ratio is B over A, the rest the comparison's."""
        metric = metric or self.metric
        if metric in ("A", "B"):
            if not self.sides[metric]:
                return None
            return value(self.sides[metric], place, self.scope, "std")
        if metric == "ratio":
            a, b = self.number(place, "A"), self.number(place, "B")
            return b / a if a and b is not None else None
        difference = self.comparison.cells.get(place) if self.comparison else None
        found: float | None = getattr(difference, metric) if difference else None
        return found

    def mark(self, place: Place) -> str:
        """The comparison's own word for the cell; not measured until it is judged."""
        difference = self.comparison.cells.get(place) if self.comparison else None
        return PAIR_MARKS.get(difference.state, UNKNOWN) if difference else UNKNOWN

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text and mark of a cell; a number that is there is shown even before the verdict."""
        return shorten(self.number((row, column)), self.mark((row, column)))

    def multiple(self, place: Place) -> float | None:
        """The metric over the cell's floor; None where that says nothing of the metric."""
        difference = self.comparison.cells.get(place) if self.comparison else None
        number = self.number(place)
        if difference is None or number is None or not difference.floor or self.metric not in DISTANCES:
            return None
        return number / difference.floor

    def tone(self, place: Place) -> str:
        """The style of a cell: the first one bright, what follows it dim on the shade of its multiple."""
        mark, found = self.mark(place), self.comparison
        if mark != BAD or found is None or place == found.first:
            return STATES[mark][1]
        difference = found.cells[place]
        size, floor = difference.rel_l2, difference.floor
        return f"quiet@{shade(size / floor / NOISE_MULTIPLE if size is not None and floor else None)}"

    def odd(self, columns: Sequence[str]) -> list[Place]:
        """Cells of these stages that differ or are unclear, in order of computation: what n and p step through."""
        cells = self.comparison.cells if self.comparison else {}
        odd = (p for p, d in cells.items() if d.state in (State.DIFFERS, State.UNCLEAR) and p[1] in columns)
        return sorted(odd, key=place_order)

    def next_metric(self) -> str:
        """The metric after the present one."""
        return PAIR_METRICS[(PAIR_METRICS.index(self.metric) + 1) % len(PAIR_METRICS)]

    def next_scope(self, place: Place) -> str:
        """The scope after the present one."""
        return SCOPES[(SCOPES.index(self.scope) + 1) % len(SCOPES)] if self.scope in SCOPES else SCOPES[0]
