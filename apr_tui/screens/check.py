"""The check's screen: every stage against float64 on the run's own inputs, over the same grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len

from apr_tui.keys import CHECK_KEYS, bindings
from apr_tui.render.check import cell_spans, note_lines
from apr_tui.render.help import CHECK_MEANINGS
from apr_tui.render.status import seconds_text, witness_span
from apr_tui.render.title import fit_names, planted_spans, push_right
from apr_tui.render.verdict_card import check_card, nearest
from apr_tui.request import Request
from apr_tui.screens.page import PageScreen
from apr_tui.screens.verdict import VerdictScreen
from apr_tui.style import Rows, Span, crop, escape_untrusted, spans_width
from apr_tui.view_models.check import CheckView
from apr_tui.workers.jobs import check_job
from apr_tui.workers.run import Frame
from core.model.stages import stage_named

if TYPE_CHECKING:
    from core.formats.model_file import ModelFile
    from core.proof.check_result import Check

AGAINST = "against float64  "
HAS_NO_SCOPE = "a local error is that of its stage's worst token, so it has no scope"


class CheckScreen(VerdictScreen):
    """One check, from the first stage to the verdict."""

    BINDINGS = bindings(CHECK_KEYS)
    kind = CHECK_KEYS
    job = "check"
    view: CheckView

    def __init__(
        self, request: Request, path: Path, model: ModelFile | None, saved: Check | None = None,
    ) -> None:
        super().__init__(CheckView(), saved)
        self.request, self.path, self.model = request, path, model
        self.at = 0  # of the bad stages: whose sentence stands below

    # what the frame asks

    def update_view(self, frame: Frame) -> set[int]:
        """Take the errors so far."""
        return self.view.update(frame.errors, frame.cells.get("", {}), frame.n_layer)

    def take(self, result: Check) -> None:
        """Show a verdict."""
        self.view.set_result(result)
        if any(stage_named(stage).detail for _, stage in self.view.bad()) and not self.has_detail:
            self.action_detail()  # else what is bad would not be in view
        place = result.first or nearest(result)
        if self.grid.is_following and place is not None:
            self.go_to(place)

    @property
    def planted(self) -> str | None:
        """The bug of the checked run."""
        return (self.view.check.trace.planted if self.view.check else None) or self.request.settings.plant

    def title_spans(self, width: int) -> list[Span]:
        """Model, device, compute, metric, elapsed."""
        check = self.view.check
        is_running = self.console.owner is self and check is None
        right = f"{seconds_text(self.console.busy_seconds() if is_running else self.seconds, is_running)} "
        front: list[Span] = [*planted_spans(self.planted), (" check ", "quiet")]
        device = (check.trace.facts.device if check else None) or self.request.settings.device
        compute = self.request.settings.compute
        middle: list[Span] = [(f"  {escape_untrusted(device)}  {compute}  ", "text"), (self.view.metric, "title")]
        room = width - spans_width([*front, *middle]) - cell_len(right) - 1
        if room > cell_len(escape_untrusted(self.path.name)) + len(AGAINST):
            middle.insert(1, (AGAINST, "quiet"))
        name, = fit_names([self.path.name], room, 6)
        return push_right([*front, (name, "title"), *middle], right, width)

    def note_lines(self, width: int) -> Rows:
        """The sentence and the guess of a bad stage, or that there is none."""
        return [[(f" {self.end}", "watch")]] if self.end else note_lines(self.view, self.at, width)

    def cell_spans(self, width: int) -> list[Span]:
        """The cell's own numbers."""
        return cell_spans(self.view, self.grid.place)

    def status_spans(self, width: int) -> list[Span]:
        """What the metric is, and the witness."""
        check = self.view.check
        spans: list[Span] = [(f" {self.view.metric}: {CHECK_MEANINGS[self.view.metric]}", "quiet")]
        right = witness_span(check.trace.observed_equals_unobserved if check else None)
        return [*crop(spans, width - len(right[0])), right]

    def set_scope(self, scope: str) -> None:
        """There is none."""
        self.say(HAS_NO_SCOPE, "quiet")

    def command(self) -> str:
        """The command that gives this verdict without a screen."""
        return self.request.command("show" if self.saved is not None else "check", self.path, scope="all")

    # actions

    def action_run(self) -> None:
        """Check, again or for the first time."""
        if self.saved is not None:
            self.say("This check was saved. Run it again on the model file: apr-tui check FILE.", "watch")
            return
        self.note, self.progress, self.seconds, self.end, self.at = None, None, None, "", 0
        self.view.clear()
        self.grid.is_following = True
        self.console.run_job(self, self.job, check_job(self.request, self.path, self.console.get_session))
        self.show_all()

    def action_open(self) -> None:
        """The layer's stages."""
        if self.view.n_row:
            self.console.show_layer(self, self.has_detail)

    def action_finding(self, step: int) -> None:
        """Step through the bad stages."""
        bad = self.view.bad()
        if not bad:
            self.say("no stage is bad" if self.view.check else "no stage is bad so far", "quiet")
            return
        self.note = None
        self.at = (self.at + step) % len(bad) if self.view.check else 0
        self.go_to(bad[self.at])
        self.show_lines()

    def action_card(self) -> None:
        """The verdict's card."""
        check = self.view.check
        if check is None:
            self.say("There is no verdict yet: the check has to end first.", "watch")
            return
        self.app.push_screen(PageScreen("Verdict of the check", lambda width: check_card(check, width), self.planted))

    def action_export(self) -> None:
        """Write local.csv and verdict.json."""
        check = self.view.check
        if check is None:
            self.say("There is nothing to export yet: the check has to end first.", "watch")
            return
        out = self.console.get_session().default_out(check.trace)
        self.console.exports.ask(self, self.request, check, out.with_name(f"{out.name}-check"))
