"""Hold what a screen shows of a check: the local error of each stage as switchable metrics. core computes it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from apr_tui.style import STATES
from apr_tui.view_models.number import shade, shorten
from core.model.stages import Place, place_order
from core.trace.finding import ABSENT, BAD, OK, UNKNOWN

if TYPE_CHECKING:
    from core.proof.check_result import Check
    from core.trace.measures import LocalError

CHECK_METRICS = ("nmse", "sqnr_db", "floor", "multiple")


class CheckView:
    """One check, growing or judged, at a metric. It has no scope: each number is the worst token's."""

    def __init__(self) -> None:
        self.metric = CHECK_METRICS[0]
        self.clear()

    def clear(self) -> None:
        """Forget the numbers: another check begins."""
        self.errors: Mapping[Place, LocalError] = {}
        self.unjudged: frozenset[Place] = frozenset()
        self.check: Check | None = None
        self._judged_bad: frozenset[Place] = frozenset()  # of a judged check: for a weight or an overflow too
        self._n_layer = 0

    @property
    def known(self) -> Set[Place]:
        """The places that have numbers."""
        return self.errors.keys()

    @property
    def n_row(self) -> int:
        """Layers of the model, as far as known."""
        return self._n_layer

    def update(self, errors: Mapping[Place, LocalError], cells: Mapping[Place, Any], n_layer: int | None) -> set[int]:
        """Take a newer snapshot; returns the rows that changed."""
        before = self.errors.keys() | self.unjudged
        self._take(errors, cells)
        rows = {layer for layer, _ in errors.keys() - before if layer is not None}
        if (n_layer or 0) > self._n_layer:
            self._n_layer = n_layer or 0
            return set(range(self._n_layer))
        return rows

    def set_result(self, check: Check) -> None:
        """Take the judged check."""
        self.check = check
        self._judged_bad = frozenset(check.bad)
        self._take(check.errors, check.trace.cells)
        self._n_layer = max(check.trace.facts.n_layer or 0, check.trace.n_layer)

    def select(self, metric: str) -> None:
        """Show another metric."""
        self.metric = metric

    def number(self, place: Place, metric: str | None = None) -> float | None:
        """One number of a stage; floor as measured, multiple of the floor that counts."""
        error = self.errors.get(place)
        if error is None:
            return None
        return {"nmse": error.nmse, "sqnr_db": error.sqnr_db, "floor": error.floor,
                "multiple": error.nmse / error.limit}[metric or self.metric]

    def mark(self, place: Place) -> str:
        """Bad by core's own rule; not measured where no token could be judged; absent where there is no such stage."""
        error = self.errors.get(place)
        if error is None and place in self._judged_bad:
            return BAD
        if error is None:
            return UNKNOWN if self.check is None or place in self.unjudged else ABSENT
        return BAD if error.is_bad or place in self._judged_bad else OK

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text and mark of a cell of the grid."""
        return shorten(self.number((row, column)), self.mark((row, column)))

    def multiple(self, place: Place) -> float | None:
        """NMSE over the floor that counts; None where another metric is shown."""
        return self.number(place, "multiple") if self.metric in ("nmse", "multiple") else None

    def tone(self, place: Place) -> str:
        """The style of a cell: each bad one is a fault of its own; the others by the shade of their multiple."""
        mark = self.mark(place)
        return f"text@{shade(self.number(place, 'multiple'))}" if mark == OK else STATES[mark][1]

    def bad(self) -> list[Place]:
        """The bad places in order of computation, the whole model's among them: what n and p step through."""
        found = {place for place, error in self.errors.items() if error.is_bad}
        return sorted(found | self._judged_bad, key=place_order)

    def next_metric(self) -> str:
        """The metric after the present one."""
        return CHECK_METRICS[(CHECK_METRICS.index(self.metric) + 1) % len(CHECK_METRICS)]

    def _take(self, errors: Mapping[Place, LocalError], cells: Mapping[Place, Any]) -> None:
        """Keep what was judged; a stage without a finite token, as after a NaN, has no error."""
        self.unjudged = frozenset(p for p in cells.keys() - errors.keys() if _is_lost(cells[p]))
        self.errors = errors


def _is_lost(cell: Any) -> bool:  # noqa: ANN401 (a Cell)
    """Say whether every token of a stage has a NaN or an Inf."""
    finite_T = getattr(cell, "finite_T", None)
    return finite_T is not None and bool((finite_T < cell.width).all())
