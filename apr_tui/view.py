"""Hold what a screen shows of a trace or a comparison: cells, scope, metric, findings. It computes and draws none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.model.stages import SCOPES, Place, place_order
from core.system.numbers import short
from core.trace.grid import marks, value
from core.trace.marks import ABSENT, BAD, MARK_OF_KIND, METRICS, OK, UNKNOWN, WATCH

if TYPE_CHECKING:
    from core.proof.verdict import Comparison
    from core.trace.finding import Finding
    from core.trace.record import Trace

PAIR_METRICS = ("rel_l2", "A", "B", "ratio", "inherited", "local", "cosine", "max_abs")
PAIR_MARKS = {"same": OK, "unclear": WATCH, "differs": BAD, "absent": ABSENT}
ROOM = 6  # columns of a number


class TraceView:
    """One trace, growing or whole, at a scope and a metric."""

    def __init__(self, scope: str = "all", threshold: float = 10.0) -> None:
        self.scope, self.threshold, self.metric = scope, threshold, "std"
        self.clear()

    def clear(self) -> None:
        """Forget the numbers: another run begins."""
        self.cells: Mapping[Place, Any] = {}
        self.tokens: tuple[Any, ...] = ()
        self.generated = ""
        self.trace: Trace | None = None
        self.findings: Sequence[Finding] = ()
        self.finding = 0
        self._n_layer = 0
        self._shown: dict[Place, tuple[str, str]] = {}
        self._numbers: dict[tuple[Place, str], float | None] = {}
        self._marks: dict[Place, str] = {}

    @property
    def n_row(self) -> int:
        """Layers of the model, as far as known."""
        return self._n_layer

    def grow(self, cells: Mapping[Place, Any], n_layer: int | None) -> set[int]:
        """Take a newer snapshot; returns the rows that changed (every row where the depth became known)."""
        fresh = cells.keys() - self.cells.keys()
        self.cells = cells
        rows = {layer for layer, _ in fresh if layer is not None}
        if rows:
            near = {p: c for p, c in cells.items() if p[0] is not None and (p[0] in rows or p[0] + 1 in rows)}
            self._marks |= {p: m for p, m in marks(near, self.scope, self.threshold).items() if p in fresh}
        deepest = max(n_layer or 0, max(rows, default=-1) + 1)
        if deepest > self._n_layer:
            self._n_layer = deepest
            return set(range(deepest))
        return rows

    def finish(self, trace: Trace, findings: Sequence[Finding]) -> None:
        """Take the whole trace and its findings."""
        self.trace = trace
        self.cells, self.tokens = trace.cells, trace.tokens
        self._n_layer = max(trace.facts.n_layer or 0, trace.n_layer)
        self.look(findings=findings)

    def look(
        self, scope: str | None = None, metric: str | None = None, findings: Sequence[Finding] | None = None,
    ) -> None:
        """Show another scope or metric of the same run, with the findings at that scope."""
        self.metric = metric or self.metric
        self._shown = {}
        if scope is not None and scope != self.scope:
            self._numbers = {}
        if scope is None and findings is None:
            return
        self.scope = scope or self.scope
        if findings is not None:
            self.findings, self.finding = findings, 0
        self._marks = marks(self.cells, self.scope, self.threshold)
        for finding in self.findings:
            if self._marks.get(finding.place) in (OK, WATCH, UNKNOWN):
                same = finding.scope == self.scope
                self._marks[finding.place] = MARK_OF_KIND.get(finding.kind, WATCH) if same else WATCH

    def number(self, place: Place, metric: str | None = None) -> float | None:
        """One number of a cell at the scope."""
        if place not in self.cells:
            return None
        key = (place, metric or self.metric)
        if key not in self._numbers:  # merging the tokens takes some 50 us, a redraw asks for hundreds
            self._numbers[key] = value(self.cells, place, self.scope, key[1])
        return self._numbers[key]

    def mark(self, place: Place) -> str:
        """The mark of a cell: absent where the run is over and has none, not measured while it runs."""
        if place not in self.cells:
            return ABSENT if self.trace is not None else UNKNOWN
        return self._marks.get(place, OK)

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text and mark of a cell of the grid."""
        place = (row, column)
        found = self._shown.get(place)
        if found is None:
            found = shorten(self.number(place), self.mark(place))
            if found == (ABSENT, BAD):  # nothing finite: the number is what the model made
                found = ("nan" if self.number(place, "nan") else "inf", BAD)
            if place in self.cells:
                self._shown[place] = found
        return found

    def first_bad(self) -> Place | None:
        """The first cell, in order of computation, that is marked bad."""
        bad = [place for place, mark in self._marks.items() if mark == BAD]
        return min(bad, key=place_order) if bad else None

    def next_metric(self) -> str:
        """The metric after the present one."""
        return METRICS[(METRICS.index(self.metric) + 1) % len(METRICS)]

    def next_scope(self, place: Place) -> str:
        """The scope after the present one; after the last comes the token that carries the cell, as pos:N."""
        known = (self.trace.facts.scopes if self.trace else ()) or SCOPES
        if self.scope in known and self.scope != known[-1]:
            return known[known.index(self.scope) + 1]
        if self.scope in known:
            cell = self.cells.get(place)
            stats = cell.at("all") if cell is not None and hasattr(cell, "mean") else None
            if stats is not None and stats.peak_token is not None and len(self.tokens) > 1:
                return f"pos:{stats.peak_token}"
        return known[0]


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
    def n_row(self) -> int:
        """Layers of the deeper side."""
        return self._n_layer

    def grow(self, cells: Mapping[str, Mapping[Place, Any]], n_layer: int | None) -> set[int]:
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

    def finish(self, comparison: Comparison) -> None:
        """Take the judged comparison."""
        self.comparison = comparison
        self.sides = {"A": comparison.a.cells, "B": comparison.b.cells}
        self._n_layer = max(comparison.a.n_layer, comparison.b.n_layer, self._n_layer)

    def look(self, scope: str | None = None, metric: str | None = None) -> None:
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

    def odd(self, columns: Sequence[str]) -> list[Place]:
        """Cells of these stages that differ or are unclear, in order of computation: what n and p walk."""
        cells = self.comparison.cells if self.comparison else {}
        odd = (p for p, d in cells.items() if d.state in ("differs", "unclear") and p[1] in columns)
        return sorted(odd, key=place_order)

    def next_metric(self) -> str:
        """The metric after the present one."""
        return PAIR_METRICS[(PAIR_METRICS.index(self.metric) + 1) % len(PAIR_METRICS)]

    def next_scope(self, place: Place) -> str:
        """The scope after the present one."""
        return SCOPES[(SCOPES.index(self.scope) + 1) % len(SCOPES)] if self.scope in SCOPES else SCOPES[0]


def shorten(number: float | None, mark: str) -> tuple[str, str]:
    """Text and mark of a cell: a cell without a number shows its mark alone."""
    if number is None:
        return (mark, mark) if mark in (ABSENT, UNKNOWN) else (ABSENT, mark)
    return short(number, ROOM), OK if mark == UNKNOWN else mark
