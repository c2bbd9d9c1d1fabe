"""The comparison's screen: B against A as switchable metrics over the same grid, with the verdict and its reasons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Horizontal

from apr_tui.keys import PAIR_KEYS, bindings
from apr_tui.render.help import PAIR_MEANINGS
from apr_tui.render.pair import cause, verdict_rows
from apr_tui.render.status import error_note, seconds_text
from apr_tui.render.title import fit_names, planted_spans, push_right
from apr_tui.render.verdict_card import pair_card
from apr_tui.request import Request
from apr_tui.screens.grid import WIDE
from apr_tui.screens.page import PageScreen
from apr_tui.screens.verdict import VerdictScreen
from apr_tui.style import STATES, Rows, Span, escape_untrusted, spans_width, to_terminal_charset, wrap
from apr_tui.view_models.pair import PairView, SideView
from apr_tui.widgets.grid import GridView
from apr_tui.workers.jobs import bisect_job, pair_job
from apr_tui.workers.run import Frame
from core.model.stages import place_text
from core.system.errors import Cancelled
from core.system.numbers import short

if TYPE_CHECKING:
    from core.proof.verdict import Bisection, Comparison


class CompareScreen(VerdictScreen):
    """One comparison, from both traces to the verdict, and its bisection."""

    BINDINGS = bindings(PAIR_KEYS)
    kind = PAIR_KEYS
    job = "pair"
    view: PairView

    def __init__(self, request: Request, a: Path, b: Path, saved: Comparison | Bisection | None = None) -> None:
        super().__init__(PairView(request.options.scope), saved)
        self.request, self.a, self.b = request, a, b
        self.bisection: Bisection | None = None
        self.files: tuple[str, ...] = ()  # what the files differ in, known before the verdict
        self.other = GridView(SideView(self.view, "B"), self.grid.columns, id="other")  # B, where A is shown and fits
        self.other.name_shown = (" B", "b")

    def compose(self) -> ComposeResult:
        """As any grid, with B's beside it."""
        yield self.head
        with Horizontal(id="body"):
            yield from (self.grid, self.other, self.overview)
        yield from (self.notes, self.foot, self.small)

    def show_all(self) -> None:
        """B's numbers stand beside A's from 160 columns."""
        are_both = self.size.width >= WIDE and self.view.metric == "A"
        self.grid.name_shown = (" A", "a") if are_both else ("", "quiet")
        self.set_class(are_both, "sides")
        super().show_all()
        self._show_other()

    def on_grid_view_moved(self) -> None:
        """The cursor stands at the same cell of both."""
        super().on_grid_view_moved()
        self._show_other()

    def _show_other(self) -> None:
        if self.has_class("sides"):
            self.other.columns = self.grid.columns
            self.other.show_like(self.grid)

    @property
    def comparison(self) -> Comparison | None:
        """The judged comparison."""
        return self.view.comparison

    # what the frame asks

    def update_view(self, frame: Frame) -> set[int]:
        """Take the numbers so far; before the verdict A's are shown."""
        self.files = frame.files or self.files
        rows = self.view.update(frame.cells, frame.n_layer)
        if self.has_class("sides"):
            self.other.show_rows(rows)
        return rows

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """As any verdict's; of a bisection that gave nothing the comparison stays."""
        if kind == "bisect" and error is not None:
            self.note = ("bisection cancelled", "watch") if isinstance(error, Cancelled) else error_note(error)
            self.show_all()
        else:
            super().job_finished(kind, result, error)

    def take(self, result: Comparison | Bisection) -> None:
        """Show a verdict, and its ladder where the cause was proved."""
        self.bisection = cast("Bisection", result) if hasattr(result, "comparison") else None
        found = self.bisection.comparison if self.bisection is not None else cast("Comparison", result)
        self.view.set_result(found)
        self.view.metric = "rel_l2" if found.cells else "A"
        if self.grid.is_following and found.first is not None:
            self.go_to(found.first)

    @property
    def planted(self) -> str | None:
        """The bugs of both sides."""
        sides = (self.comparison.a, self.comparison.b) if self.comparison else ()
        return ", ".join(trace.planted for trace in sides if trace.planted) or self.request.settings.plant

    @property
    def names(self) -> tuple[str, str]:
        """What A and B are called: by their files; a file beside itself by what else differs, once that is known."""
        known = self.comparison is not None and (self.a.name == self.b.name or self.saved is not None)
        return self.comparison.names if known and self.comparison else (self.a.name, self.b.name)

    def title_spans(self, width: int) -> list[Span]:
        """A, B, scope, metric, elapsed."""
        is_running = self.console.owner is self and self.comparison is None
        seconds = self.console.busy_seconds() if is_running else self.seconds
        front, right = planted_spans(self.planted), f"{seconds_text(seconds, is_running)} "
        middle: list[Span] = [
            ("  scope ", "quiet"), (self.view.scope, "title"), ("  ", "quiet"), (self.view.metric, "title"),
        ]
        room = width - spans_width([*front, *middle]) - cell_len(right) - len(" A   B ") - 1
        a, b = fit_names(self.names, room, 4)
        return push_right([*front, (" A ", "a"), (a, "title"), ("  B ", "b"), (b, "title"), *middle], right, width)

    def note_lines(self, width: int) -> Rows:
        """The verdict, then as many reasons as there is room for."""
        found = self.comparison
        if found is None:
            waits = self.end or "the verdict comes when both sides are measured"
            told = [part for text in self.files for part in wrap(f"files: {escape_untrusted(text)}", width - 2)]
            return [*([(f" {part}", "text")] for part in told[:2]), [(f" {waits}", "quiet")]]
        lines: Rows = verdict_rows(found, width)
        if self.bisection is not None and self.bisection.ladder is not None:
            lines += [[(f"   {part}", "text")]
                      for part in wrap(to_terminal_charset(escape_untrusted(self.bisection.sentence)), width - 4)]
            return [*lines, [("   b", "key"), (" shows the ladder of grafts", "quiet")]]
        reasons = [part for reason in found.reasons for part in wrap(escape_untrusted(reason), width - 4)]
        lines += [[(f"   {part}", "text")] for part in reasons[:3]]
        if len(reasons) > 3:
            lines[-1] = [*lines[-1][:1], (to_terminal_charset(" …"), "quiet")]
        return lines

    def cell_spans(self, width: int) -> list[Span]:
        """The cell's own numbers."""
        place = self.grid.place
        word, name = STATES[self.view.mark(place)]
        if self.comparison is not None:
            word = cause(self.comparison, place)
            word = "differs, downstream" if word == "downstream" else word
        spans: list[Span] = [(f" {place_text(place)} ", "title"), (f"{self.view.mark(place)} {word} ", name)]
        return [*spans, *self._numbers(("A", "B", "ratio"))]

    def status_spans(self, width: int) -> list[Span]:
        """The distances, and what the metric is where there is room."""
        difference = self.comparison.cells.get(self.grid.place) if self.comparison else None
        spans = self._numbers(("rel_l2", "inherited", "local"))
        if difference is not None and difference.floor is not None:
            spans += [(" floor ", "quiet"), (short(difference.floor), "text")]
        meaning = f"  {self.view.metric}: {PAIR_MEANINGS[self.view.metric]}"
        fits = spans_width(spans) + len(meaning) <= width
        return [*spans, (meaning, "quiet")] if fits else spans

    def _numbers(self, metrics: tuple[str, ...]) -> list[Span]:
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
        if self.saved is not None:
            return self.request.command("show", self.a.parent, scope="all")
        verb = "bisect" if self.bisection is not None else "compare"
        return self.request.command(verb, self.a, self.b, scope=self.request.options.scope)

    # actions

    def action_run(self) -> None:
        """Compare, again or for the first time."""
        self.note, self.progress, self.seconds, self.end, self.files = None, None, None, "", ()
        self.saved = None
        self.view.clear()
        self.view.metric, self.bisection = "A", None
        self.console.run_job(self, "pair", pair_job(self.request, self.a, self.b, self.console.get_session))

    def action_open(self) -> None:
        """The layer's stages: local and inherited error, floor, cause."""
        if self.view.n_row:
            self.console.show_layer(self, self.has_detail)

    def action_bisect(self) -> None:
        """Prove the cause by grafts; once that is done, show the ladder."""
        if self.console.owner is self and self.console.job == "bisect":
            self.say("It bisects already: esc cancels.", "quiet")
        elif self.bisection is not None:
            self._show_ladder(self.bisection)
        elif self.comparison is None:
            self.say("There is no verdict yet: the comparison has to end first.", "watch")
        elif any(self.console.get_session().is_bundle(path) for path in (self.a, self.b)):
            self.say("A bundle cannot be run with a graft. Bisect the model files: apr-tui bisect A B.", "watch")
        else:
            self.note, self.progress = None, None
            self.console.run_job(self, "bisect", bisect_job(self.request, self.a, self.b, self.console.get_session))
            self.show_lines()

    def _show_ladder(self, found: Bisection) -> None:
        if found.ladder is None:
            self.say("No cell differs: there is no graft to try.", "quiet")
        else:
            self.console.show_ladder(self, found)

    def action_finding(self, step: int) -> None:
        """Step through the cells that differ."""
        places = self.view.odd(self.grid.columns)
        if places:
            self.go_to(self.step(places, step))
        else:
            self.say("no cell differs", "quiet")

    def action_card(self) -> None:
        """The verdict's card."""
        found = self.comparison
        if found is None:
            self.say("There is no verdict yet: the comparison has to end first.", "watch")
        else:
            self.app.push_screen(PageScreen("Verdict", lambda width: pair_card(found, width), self.planted))

    def action_export(self) -> None:
        """Write both bundles, cells.csv and verdict.json; after a bisection the ladder and the reproducer too."""
        if self.comparison is None:
            self.say("There is nothing to export yet: the comparison has to end first.", "watch")
            return
        out = self.console.get_session().default_out(self.comparison.a)
        word = "pair" if self.bisection is None else "bisect"
        shown = self.bisection or self.comparison
        self.console.exports.ask(self, self.request, shown, out.with_name(f"{out.name}-{word}"))
