"""Hold what a screen shows of a trace or a comparison: cells, scope, metric, findings. It computes and draws none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from apr_tui.style import STATES
from apr_tui.view_models.number import shade, shorten
from core.model.stages import SCOPES, Place, place_order
from core.trace.finding import ABSENT, BAD, MARK_OF_KIND, OK, UNKNOWN, WATCH
from core.trace.grid import marks_of, place_before, stats_at, value
from core.trace.metrics import METRICS

if TYPE_CHECKING:
    from core.trace.finding import Finding
    from core.trace.record import Trace


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
        self._first: Place | None = None  # first_spike, until a mark changes
        self._stats: dict[Place, Any] = {}  # at the scope, while the cells come in

    @property
    def known(self) -> Set[Place]:
        """The places that have numbers."""
        return self.cells.keys()

    @property
    def n_row(self) -> int:
        """Layers of the model, as far as known."""
        return self._n_layer

    def update(self, cells: Mapping[Place, Any], n_layer: int | None) -> set[int]:
        """Take a newer snapshot; returns the rows that changed (every row where the depth became known)."""
        fresh = cells.keys() - self.cells.keys()
        self.cells = cells
        rows = {layer for layer, _ in fresh if layer is not None}
        if rows:
            self._stats |= stats_at({place: cells[place] for place in fresh}, self.scope)
            found = marks_of(self._stats, {p[0] for p in cells if p[0] is not None}, self.threshold)
            changed = {p for p, mark in found.items() if p in cells and mark != self._marks.get(p)}
            for place in changed:  # a column that grows turns a spike into a step
                self._shown.pop(place, None)
            self._marks |= {place: found[place] for place in changed}
            self._first = None if changed else self._first
            rows |= {place[0] for place in changed if place[0] is not None}
        deepest = max(n_layer or 0, max(rows, default=-1) + 1)
        if deepest > self._n_layer:
            self._n_layer = deepest
            return set(range(deepest))
        return rows

    def set_result(self, trace: Trace, findings: Sequence[Finding]) -> None:
        """Take the whole trace and its findings."""
        self.trace = trace
        self.cells, self.tokens = trace.cells, trace.tokens
        self._n_layer = max(trace.facts.n_layer or 0, trace.n_layer)
        self.select(findings=findings)

    def select(
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
        kinds = self.trace.layer_kinds if self.trace is not None else ()
        self._first = None
        self._stats = stats_at(self.cells, self.scope)
        self._marks = marks_of(self._stats, {p[0] for p in self.cells if p[0] is not None}, self.threshold, kinds)
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
            kinds = self.trace.layer_kinds if self.trace is not None else ()
            self._numbers[key] = value(self.cells, place, self.scope, key[1], kinds)
        return self._numbers[key]

    def layer_before(self, place: Place) -> int | None:
        """The layer that a cell's ratio is taken over."""
        before = place_before(place, self.trace.layer_kinds if self.trace is not None else ())
        return before[0] if before is not None else None

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

    def multiple(self, place: Place) -> float | None:
        """A trace has no floor."""
        return None

    def tone(self, place: Place) -> str:
        """The style of a cell: the first spike bright, what follows it dim on the shade of its ratio."""
        mark = self.mark(place)
        if mark != BAD or place == self.first_spike():
            return STATES[mark][1]
        return f"quiet@{max(shade(self.number(place, 'ratio')), 1)}"

    def first_spike(self) -> Place | None:
        """The place of the first finding, where it is marked bad, else the first cell that is."""
        if self._first is None:
            first = self.findings[0].place if self.findings else None
            self._first = first if first is not None and self._marks.get(first) == BAD else self.first_bad()
        return self._first

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
            stats = cell.at("all") if cell is not None and hasattr(cell, "rows") else None
            if stats is not None and stats.peak_token is not None and len(self.tokens) > 1:
                return f"pos:{stats.peak_token}"
        return known[0]
