"""The main screen: the trace of one model as a grid that fills, its findings, and what leads on from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from apr_tui.keys import GRID_KEYS, bindings
from apr_tui.recent import remember
from apr_tui.render.status import error_note, export_note, seconds_text
from apr_tui.render.title import fit_names, planted_spans, push_right
from apr_tui.render.trace import cell_spans, note_lines, status_spans
from apr_tui.request import Request
from apr_tui.screens.grid import DESIGN_HEIGHT, DESIGN_WIDTH
from apr_tui.screens.leading import LeadingScreen
from apr_tui.screens.opening import ask_file, ask_prompt
from apr_tui.screens.page import PageScreen
from apr_tui.style import Rows, Span, escape_untrusted, spans_width
from apr_tui.view_models.trace import TraceView
from apr_tui.workers.jobs import Billed, Traced, hints_job, trace_job
from apr_tui.workers.run import Frame
from core.model.stages import UNKNOWN_SCOPE
from core.system.errors import Cancelled

PROVED = "audit proves"  # begins the note of a trace whose file is at fault
SHORT_NAME = 6  # columns of a model's name that are always shown


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished trace as it was shown, which stands again where the next run gives nothing."""

    request: Request
    traced: Traced
    seconds: float | None
    at: tuple[int, int]  # the cursor's row and column


class TraceScreen(LeadingScreen):
    """One trace: from the first event to the finding's sentence."""

    BINDINGS = bindings(GRID_KEYS)
    kind = GRID_KEYS
    job = "trace"
    view: TraceView

    def __init__(self, request: Request) -> None:
        super().__init__(TraceView(request.options.scope, request.options.threshold))
        self.request, self.traced = request, None
        self.kept: Kept | None = None
        self.known: dict[str, Any] = {}
        self.seconds: float | None = None  # of the last finished run
        self.end = ""                      # how the last run ended, where it gave nothing
        self.asked_nothing = True               # nothing was asked of it: another screen was

    def start(self, request: Request | None = None) -> None:
        """Run, again or anew: the numbers go at once, so that an old grid never stands under a new prompt."""
        request = request or self.request
        if self.traced is not None:
            self.kept = Kept(self.request, self.traced, self.seconds, (self.grid.row, self.grid.column))
        if (request.path, request.bundle) != (self.request.path, self.request.bundle):
            self.known = {}
        self.request, self.traced, self.note, self.progress = request, None, None, None
        self.seconds, self.end = None, ""
        self.view.clear()
        self.grid.is_following = True
        self.grid.row = self.grid.column = 0
        self.asked_nothing = False
        self.console.run_job(self, "trace", trace_job(request, self.console.get_session))
        self.show_all()

    @property
    def model_name(self) -> str:
        """The model's name, as far as known; not yet safe to show."""
        path = self.request.bundle or self.request.path
        return self.traced.trace.name if self.traced else str(self.known.get("name") or (path.name if path else "demo"))

    # what the frame asks

    def update_view(self, frame: Frame) -> set[int]:
        """Take the numbers so far."""
        self.known |= frame.known
        self.view.tokens, self.view.generated = frame.tokens, frame.generated
        return self.view.update(frame.cells.get("", {}), frame.n_layer)

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the end of a trace, of an export, or of a search for hints."""
        if kind == "hints":
            if error is None:
                self.view.select(findings=result)
        elif kind == "export":
            self.note = export_note(result, error)
        elif error is not None:
            self._ended_early(error)
        elif isinstance(result, Billed):
            self._take_bill(result)
        else:
            self.seconds, self.note, self.kept = self.console.run_seconds, None, None
            self._take(result)
            if result.judged is not None:
                self.console.show_judged(self.request, result.judged, result.folder)
            if result.path is not None:
                self.request = replace(self.request, path=result.path)
            opened = result.folder or result.bundle or self.request.path
            if opened is not None:
                remember(opened)
            proved = next((note for note in result.trace.notes if note.startswith(PROVED)), None)
            self.note = (f"X {escape_untrusted(proved)}", "bad") if proved else None
            if result.bundle is not None:  # it may lack the scope that was asked for
                self.view.select(scope=result.scope)
            elif result.scope != self.view.scope:  # it was changed while the trace ran
                self.scope_changed()
            if self.grid.is_following and self.view.findings:
                self._go_to_finding()
        self.show_all()

    def _ended_early(self, error: Exception) -> None:
        """Say how it ended; the trace before it stands again, where there was one."""
        self.end = "cancelled: the grid is incomplete" if isinstance(error, Cancelled) else "failed"
        self.seconds = self.console.run_seconds
        self.note = None if isinstance(error, Cancelled) else error_note(error)
        if self.kept is not None:
            kept, self.kept, self.end, self.known = self.kept, None, "", {}
            self.note = self.note or ("cancelled: the trace before it stands again", "watch")
            self.request, self.seconds = kept.request, kept.seconds
            self._take(kept.traced)
            self.view.select(scope=kept.traced.scope)
            self.grid.go(*kept.at)

    def _take_bill(self, billed: Billed) -> None:
        """Show a folder of costs over this screen, on which the trace before it stands again."""
        if self.kept is not None:
            self._ended_early(Cancelled("no trace"))
            self.note = None
        self.asked_nothing = self.traced is None
        self.end = "" if self.traced is not None else "no trace was opened"
        remember(billed.folder)
        if billed.bill is not None:
            self.console.show_damage(self.request, billed.folder, billed.bill)
        else:
            lines: Rows = [[(f" {escape_untrusted(line)}", "text")] for line in billed.text.splitlines()]
            self.app.push_screen(PageScreen(escape_untrusted(billed.folder.name), lambda width: lines))

    def _take(self, traced: Traced) -> None:
        self.traced = traced
        self.view.set_result(traced.trace, traced.findings)

    @property
    def planted(self) -> str | None:
        """The bug of the traced run."""
        return (self.traced.trace.planted if self.traced else None) or self.request.settings.plant

    def title_spans(self, width: int) -> list[Span]:
        """Model, arch, device, compute, scope, metric, elapsed, memory."""
        trace = self.traced.trace if self.traced else None
        facts = trace.facts if trace else None
        arch = (facts.arch if facts else self.known.get("arch")) or "?"
        device = (facts.device if facts else None) or self.request.settings.device
        compute = (facts.compute if facts else None) or ("?" if facts else self.request.settings.compute)
        is_running = self.console.owner is self and self.traced is None
        seconds = self.console.busy_seconds() if is_running else self.seconds
        right = f"{seconds_text(seconds, is_running)}  {self.console.memory()} "
        middle: list[Span] = [
            (f"  {escape_untrusted(arch)}  {escape_untrusted(device)}  {escape_untrusted(compute)}  ", "text"),
            (f"{self.request.feed}  " if self.request.feed else "", "text"), ("scope ", "quiet"),
            (self.view.scope, "title"), ("  ", "quiet"), (self.view.metric, "title"), ("  ", "quiet"),
        ]
        front, room = planted_spans(self.planted), width - spans_width(middle) - cell_len(right) - 1
        if front and spans_width(front) + min(cell_len(escape_untrusted(self.model_name)), SHORT_NAME) > room:
            front = [(" PLANTED ", "planted")]  # export, and a wider screen, say what
        name, = fit_names([self.model_name], room - spans_width(front), SHORT_NAME)
        return push_right([*front, (f" {name}", "title"), *middle], right, width)

    def note_lines(self, width: int) -> Rows:
        """The finding's sentence, or what stands in for it while there is none."""
        return note_lines(self.view, width)

    def cell_spans(self, width: int) -> list[Span]:
        """Place, its number, ratio, and who carries it."""
        return cell_spans(self.view, self.grid.place, width)

    def status_spans(self, width: int) -> list[Span]:
        """The prompt and what the model says next; or how the run ended without."""
        if self.end:
            ways: list[Span] = [("  r", "key"), (" runs again  ", "quiet"), ("f", "key"), (" opens another", "quiet")]
            return [(f" {self.end}", "watch"), *ways]
        if width < DESIGN_WIDTH or self.size.height < DESIGN_HEIGHT:
            needed = f"{DESIGN_WIDTH} x {DESIGN_HEIGHT}"
            return [(f" {width} x {self.size.height} is below {needed}: not everything is in view", "quiet")]
        asked = f'"{escape_untrusted(self.request.prompt.text)}"' if self.request.feed else "tokens"
        return status_spans(self.view, asked, width)

    def scope_changed(self) -> None:
        """Look for the hints of the new scope."""
        self.request = self.request.with_scope(self.view.scope)
        if self.traced is not None:
            self.view.select(findings=())
            self.console.run_job(self, "hints", hints_job(
                self.traced.trace, self.view.scope, self.view.threshold, self.console.get_session))

    def command(self) -> str:
        """The command that gives these numbers without a screen."""
        bundle = self.traced.bundle if self.traced else self.request.bundle
        if bundle is not None:
            scope = "all" if self.view.scope == UNKNOWN_SCOPE else self.view.scope  # no option says that one
            return self.request.command("show", bundle, scope=scope)
        path = self.request.path or Path("demo.gguf")
        return self.request.command("trace", path, scope=self.view.scope)

    # actions

    def action_back(self) -> None:
        """Cancel the run, else take the message away."""
        if self.console.cancel_job():
            self.say("cancelling ...", "watch")
        else:
            self.clear_note()

    def action_open(self) -> None:
        """Open the layer."""
        if self.view.n_row:
            self.console.show_layer(self)

    def action_finding(self, step: int) -> None:
        """Step through the findings."""
        self.note = None
        if self.view.findings:
            self.view.finding = (self.view.finding + step) % len(self.view.findings)
            self.grid.is_following = False
            self._go_to_finding()
        self.show_lines()

    def action_run(self) -> None:
        """Run again."""
        self.start()

    def action_prompt(self) -> None:
        """Ask for another prompt and run it."""
        ask_prompt(self.console, self.request, self.start)

    def action_chat(self) -> None:
        """Put the prompt through the chat template, or take it raw; and run."""
        prompt = self.request.prompt
        if self.request.feed:
            self.start(replace(self.request, prompt=replace(prompt, chat=not prompt.chat)))
        else:
            self.say("Only text goes through a chat template: not token ids, and a bundle is not run.", "watch")

    def action_file(self) -> None:
        """Ask for another file or bundle and trace it."""
        ask_file(self.console, self.request, self.start)

    def _go_to_finding(self) -> None:
        layer, stage = self.view.findings[self.view.finding].place
        if layer is not None:
            following = self.grid.is_following
            self.grid.go(layer, self.grid.columns.index(stage) if stage in self.grid.columns else None)
            self.grid.is_following = following
