"""The comparison's screen: B against A as switchable metrics over the same grid, with the verdict and its reasons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from apr_tui.door import Request
from apr_tui.grid_screen import GridScreen
from apr_tui.jobs import pair_job
from apr_tui.keys import PAIR, bindings
from apr_tui.page import PAIR_MEANINGS, PageScreen
from apr_tui.paint import STATES, Span, fit, foreign, plain, wrap
from apr_tui.run_worker import Frame
from apr_tui.status import seconds_text
from apr_tui.trace_screen import error_note
from apr_tui.view import PairView
from core.errors import Cancelled
from core.stages import place_text

if TYPE_CHECKING:
    from apr_tui.app import Console
    from core.verdict import Comparison

STYLE_OF = {"AGREE": "a", "H1": "a", "H3": "b", "H2": "bad", "INCONCLUSIVE": "watch", "NOT_COMPARABLE": "watch"}
GLYPH_OF = {"AGREE": ".", "H1": ".", "H3": ".", "H2": "X", "INCONCLUSIVE": "!", "NOT_COMPARABLE": "?"}



class CompareScreen(GridScreen):
    """One comparison, from both traces to the verdict."""

    BINDINGS = bindings(PAIR)
    kind = PAIR
    job = "pair"
    view: PairView

    def __init__(self, console: Console, request: Request, a: Path, b: Path) -> None:
        super().__init__(console, PairView(request.scope))
        self.request, self.a, self.b = request, a, b
        self.seconds: float | None = None
        self.end = ""

    def on_mount(self) -> None:
        """Start."""
        self.action_run()

    @property
    def comparison(self) -> Comparison | None:
        """The judged comparison."""
        return self.view.comparison

    # what the frame asks

    def grow(self, frame: Frame) -> set[int]:
        """Take the numbers so far; before the verdict A's are shown."""
        return self.view.grow(frame.cells, frame.n_layer)

    def ended(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the verdict, or why there is none, or the end of an export."""
        if kind == "export":
            self.note = (f"written: {foreign(str(result))}", "a") if error is None else error_note(error)
        elif error is not None:
            self.end = "cancelled: no verdict" if isinstance(error, Cancelled) else "failed: no verdict"
            self.note = None if isinstance(error, Cancelled) else error_note(error)
        else:
            self.seconds = self.console.run_seconds
            self.view.finish(result)
            self.view.metric = "rel_l2" if result.cells else "A"
            if self.grid.is_following and result.first is not None:
                self._go(result.first)
        self.show_all()

    def title_spans(self, width: int) -> list[Span]:
        """A, B, scope, metric, elapsed."""
        seconds = self.console.busy_seconds() if self.console.owner is self else self.seconds
        sides = (self.comparison.a, self.comparison.b) if self.comparison else ()
        planted = ", ".join(trace.planted for trace in sides if trace.planted)
        front: list[Span] = [(f" PLANTED {foreign(planted)} ", "planted")] if planted else []
        right = f"{seconds_text(seconds)} "
        middle: list[Span] = [
            ("  scope ", "quiet"), (self.view.scope, "title"), ("  ", "quiet"), (self.view.metric, "title"),
        ]
        room = (width - sum(cell_len(t) for t, _ in [*front, *middle]) - cell_len(right) - 8) // 2
        a, b = (fit(foreign(p.name), max(min(cell_len(foreign(p.name)), room), 4)) for p in (self.a, self.b))
        spans: list[Span] = [*front, (" A ", "a"), (a, "title"), ("  B ", "b"), (b, "title"), *middle]
        used = sum(cell_len(t) for t, _ in spans)
        return [*spans, (" " * max(width - used - cell_len(right), 0) + right, "quiet")]

    def note_lines(self, width: int) -> list[list[Span]]:
        """The verdict, then as many reasons as there is room for."""
        found = self.comparison
        if found is None:
            return [[(f" {self.end}" if self.end else " the verdict comes when both sides are measured", "quiet")]]
        lines: list[list[Span]] = [verdict_spans(found)]
        reasons = [part for reason in found.reasons for part in wrap(foreign(reason), width - 4)]
        lines += [[(f"   {part}", "text")] for part in reasons[:3]]
        if len(reasons) > 3:
            lines[-1] = [*lines[-1][:1], (plain(" …"), "quiet")]
        return lines

    def cell_spans(self, width: int) -> list[Span]:
        """The cell's own numbers."""
        place = self.grid.place
        word, name = STATES[self.view.mark(place)]
        if self.comparison is not None:
            difference = self.comparison.cells.get(place)
            word = difference.state if difference else "not compared"
        spans: list[Span] = [(f" {place_text(place)} ", "title"), (f"{self.view.mark(place)} {word} ", name)]
        return [*spans, *self._numbers(("A", "B", "ratio"))]

    def status_spans(self, width: int) -> list[Span]:
        """The distances, and what the metric is where there is room."""
        from core.grid import short

        difference = self.comparison.cells.get(self.grid.place) if self.comparison else None
        spans = self._numbers(("rel_l2", "inherited", "local"))
        if difference is not None and difference.floor is not None:
            spans += [(" floor ", "quiet"), (short(difference.floor), "text")]
        meaning = f"  {self.view.metric}: {PAIR_MEANINGS[self.view.metric]}"
        fits = sum(cell_len(text) for text, _ in spans) + len(meaning) <= width
        return [*spans, (meaning, "quiet")] if fits else spans

    def _numbers(self, metrics: tuple[str, ...]) -> list[Span]:
        from core.grid import short

        spans: list[Span] = []
        for metric in metrics:
            number = self.view.number(self.grid.place, metric)
            if number is not None:
                spans += [(f" {metric} ", {"A": "a", "B": "b"}.get(metric, "quiet")), (short(number), "text")]
        return spans

    def scope_changed(self) -> None:
        """Scope is a view of A, B and ratio; the verdict stays the one that was judged."""
        if self.view.metric not in ("A", "B", "ratio"):
            self.note = ("scope moves A, B and ratio; the other metrics are each cell's worst token", "quiet")

    def command(self) -> str:
        """The command that gives this verdict without a screen."""
        return self.request.command("compare", self.a, self.b, scope=self.request.scope)

    # actions

    def action_run(self) -> None:
        """Compare, again or for the first time."""
        self.note, self.progress, self.seconds, self.end = None, None, None, ""
        self.view.clear()
        self.view.metric = "A"
        self.console.run_job(self, "pair", pair_job(self.request, self.a, self.b, self.console.door_source))

    def action_back(self) -> None:
        """Cancel the run; else take the message away; else go back to the trace."""
        if self.console.owner is self and self.console.cancel_job():
            self.say("cancelling ...", "watch")
        elif self.note is not None:
            self.hush()
        else:
            self.dismiss()

    def action_open(self) -> None:
        """Everything about the cell."""
        self.action_reasons()

    def action_finding(self, step: int) -> None:
        """Walk the cells that differ."""
        places = self.view.differing()
        if not places:
            self.say("no cell differs", "quiet")
            return
        here = (self.grid.row, self.grid.column)
        at = [(p[0] or 0, self.grid.columns.index(p[1])) for p in places]
        after = [p for p in at if p > here] if step > 0 else [p for p in at if p < here][::-1]
        row, column = (after or (at if step > 0 else at[::-1]))[0]
        self.grid.go(row, column)

    def action_reasons(self) -> None:
        """Verdict, first place and every reason."""
        found = self.comparison
        if found is not None:
            self.app.push_screen(PageScreen("Verdict", lambda width: reason_lines(found, width)))

    def action_export(self) -> None:
        """Write both bundles, cells.csv and verdict.json."""
        if self.comparison is None:
            self.say("There is nothing to export yet: the comparison has to end first.", "watch")
            return
        out = self.console.door_source().default_out(self.comparison.a)
        self.console.ask_export(self, self.comparison, out.with_name(f"{out.name}-pair"))

    def _go(self, place: tuple[int | None, str]) -> None:
        layer, stage = place
        if layer is not None:
            self.grid.go(layer, self.grid.columns.index(stage) if stage in self.grid.columns else None)


def verdict_spans(found: Comparison) -> list[Span]:
    """The verdict in one line: glyph, word, first place, side, how far above the floor."""
    from core.grid import short
    from core.verdict import VERDICTS

    name = STYLE_OF[found.verdict]
    spans: list[Span] = [(f" {GLYPH_OF[found.verdict]} {found.verdict}", f"{name}")]
    if found.first is None:
        return [*spans, (f": {VERDICTS[found.verdict]}", "text")]
    spans.append((f"  first {place_text(found.first)}", "title"))
    if found.token is not None:
        spans.append((f" token {found.token}", "text"))
    if found.channel is not None:
        spans.append((f" ch {found.channel}", "text"))
    spans.append((f"  side {found.side or 'not decided'}", "text"))
    if found.measured is not None:
        spans.append((f"  {short(found.measured)}", "text"))
    if found.multiple is not None:
        spans.append((f" = {short(found.multiple)} x floor {short(found.floor)}", "text"))
    return spans


def reason_lines(found: Comparison, width: int) -> list[list[Span]]:
    """The page of the verdict."""
    from core.verdict import VERDICTS

    lines: list[list[Span]] = [[], verdict_spans(found)]
    if found.first is not None:
        lines.append([(f"   {VERDICTS[found.verdict]}", "quiet")])
    lines += [[], [(" Reasons", "title")]]
    for reason in found.reasons:
        parts = wrap(foreign(reason), width - 6)
        lines += [[(("  - " if i == 0 else "    ") + part, "text")] for i, part in enumerate(parts)]
    for side, trace, name in (("A", found.a, "a"), ("B", found.b, "b")):
        facts = trace.facts
        known = ", ".join(foreign(str(f)) for f in (facts.engine, facts.arch, facts.compute, facts.device) if f)
        lines += [[], [(f" {side} ", name), (foreign(trace.name), "title")]]
        lines.append([(f"    {known}, {len(trace.tokens)} tokens", "text")])
    return lines
