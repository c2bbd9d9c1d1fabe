"""The training screen: a run's charts, GPU, gates and gradients, and the keys that pause, save or stop it. No torch,
no numbers.

It shows a run of this console or, read-only, one that another process writes. Leaving the screen stops neither.
"""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal

from apr_tui.keys import TRAIN_KEYS, bindings, hint_spans
from apr_tui.render.train_panels import body_lines, gate_spans, gates_page, live_gates, title_spans, waiting_lines
from apr_tui.render.train_state import phase_of, sentence_of, stall_text, state_of
from apr_tui.screens.dialogs import ConfirmScreen
from apr_tui.screens.grid import LONG_NOTE, show_small
from apr_tui.screens.page import BaseScreen, PageScreen
from apr_tui.screens.train_prompt import ask_training
from apr_tui.style import Rows, Span, escape_untrusted, wrap
from apr_tui.view_models.gradients import COLUMNS, MEANINGS, GradView
from apr_tui.widgets.grid import GridView
from apr_tui.widgets.lines import Lines
from apr_tui.workers.train import Training, TrainNews
from core.system.errors import AprError
from core.system.progress import age_text
from core.system.safe_text import join_words
from core.train.records import INTERRUPTED, RUNNING

NOTE_LINES, FOOT_LINES = 2, 2
GRADS_WIDTH = 28  # columns of the grid of gradients; the parameters stand beside it
WATCHED = "This run is another process's: it is only watched."
SAVED_SOON = "a checkpoint is written after the step in flight"


class TrainScreen(BaseScreen):
    """One run, from its first words to its gates."""

    BINDINGS = bindings(TRAIN_KEYS)
    kind = TRAIN_KEYS
    DEFAULT_CSS: ClassVar[str] = """
    TrainScreen #charts { width: 1fr; }
    TrainScreen #grads { width: 28; }
    TrainScreen #parameters { width: 1fr; }
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training = training
        self.note: tuple[str, str] | None = None
        self.has_layers = False  # the grid of gradients instead of the charts
        self.view = GradView()
        self.head, self.charts, self.parameters = Lines("title", 1), Lines("charts", 1), Lines("parameters", 1)
        self.grid = GridView(self.view, COLUMNS, id="grads")
        self.notes, self.foot, self.small = Lines("notes", NOTE_LINES), Lines("foot", FOOT_LINES), Lines("small", 1)

    def compose(self) -> ComposeResult:
        """Title, charts or gradients, notes, foot; or nothing but that it is too small."""
        yield self.head
        with Horizontal(id="body"):
            yield from (self.charts, self.grid, self.parameters)
        yield from (self.notes, self.foot, self.small)

    def on_mount(self) -> None:
        """Show what is there, and subscribe to news."""
        self.training.target = self
        self._show_body()

    def on_unmount(self) -> None:
        """Unsubscribe; the run goes on."""
        self.training.target = None

    def on_resize(self, event: events.Resize) -> None:
        """Lay out for the size."""
        show_small(self, self.small, event.size)
        self.call_after_refresh(self.show_all)

    def on_train_news(self, message: TrainNews) -> None:
        """Show what is new; dropped while the line is behind. An internal error closes the console."""
        error = self.training.error
        if error is not None and not isinstance(error, AprError):
            self.console.fail(error)
        elif not self.console.is_behind():
            self.show_all()

    def on_grid_view_moved(self) -> None:
        """The parameters go with the cursor."""
        self._show_parameters()
        self._show_foot()

    # what is shown

    def show_all(self) -> None:
        """Draw everything again; only lines that changed go over the wire."""
        width, run = self.size.width, self.training.view
        owner = "" if self.training.is_own else "watched"
        self.head.show([title_spans(run, state_of(self.training), owner, self.console.memory(), width)])
        room = max(self.size.height - 1 - FOOT_LINES - max(len(self.notes.lines), NOTE_LINES), 1)
        if self.has_layers:
            self.view.take(run.grads if run else None, run.run["plan"]["arch"]["n_layer"] if run else 0)
            self.grid.show_all()
            self._show_parameters()
        elif run is None:
            phase = phase_of(self.training) or "nothing was trained"
            self.charts.show(waiting_lines(phase, self.training.notes, width))
        else:
            self.charts.show(body_lines(run, width, room))
        notes = self._note_lines(width)
        self.notes.show([*notes, *([] for _ in range(NOTE_LINES - len(notes)))])
        self._show_foot()

    def say(self, text: str, name: str = "text") -> None:
        """Put a message under the charts until the next one."""
        self.note = (text, name)
        self.show_all()

    def command(self) -> str:
        """The command that trains this run, or watches it."""
        options = self.training.options
        watch = join_words(["apr-tui", "train", "--watch", str(self.training.folder)])
        return options.command if options is not None else watch

    def _show_body(self) -> None:
        self.charts.display = not self.has_layers
        self.grid.display = self.parameters.display = self.has_layers
        self.call_after_refresh(self.show_all)

    def _show_parameters(self) -> None:
        lines = self.view.parameter_lines(self.grid.row, self.size.width - GRADS_WIDTH)
        outside = self.view.parameter_lines(None, self.size.width - GRADS_WIDTH)
        run = self.training.view
        gates = live_gates(run) if run is not None else ()
        health = [gate_spans(gate, self.size.width - GRADS_WIDTH) for gate in gates]
        self.parameters.show([*lines, [], *outside, [], *health] if lines else [[("   ? not measured yet", "rule")]])

    def _note_lines(self, width: int) -> Rows:
        """A message; else what went wrong, or how it ended; else the newest checkpoint."""
        text, name = self.note or sentence_of(self.training, self.view.dead() if self.has_layers else ())
        return [[(f" {part}", name)] for part in wrap(text, width - 2)[:LONG_NOTE]] if text else []

    def _show_foot(self) -> None:
        width, view = self.size.width, self.training.view
        spans: list[Span] = []
        if self.has_layers:
            column = self.grid.place[1]
            at = f" at step {self.view.grads.step}" if self.view.grads is not None else ""
            spans = [(f" {column}", "title"), (f"{at}: {MEANINGS[column]}", "quiet")]
        else:
            phase = phase_of(self.training)
            spans = [(f" {escape_untrusted(phase)} ", "text")] if phase else []
            if view is not None and view.status == RUNNING and view.last_step_age_s is not None:
                stall = stall_text(view) if not self.training.is_own else ""
                spans += [(f" last step {age_text(view.last_step_age_s)} ago", "quiet"), (stall, "watch")]
        self.foot.show([spans, hint_spans(self.kind, width)])

    # actions (keys.KEYS)

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor of the grid."""
        if self.has_layers:
            self.grid.move(rows, columns)

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        if self.has_layers:
            self.grid.page(direction)

    def action_end(self, direction: int) -> None:
        """To the first or the last layer."""
        if self.has_layers:
            self.grid.go(0 if direction < 0 else self.view.n_row)

    def action_layers(self) -> None:
        """Charts, or the gradients of the layers."""
        self.has_layers = not self.has_layers
        self._show_body()

    def action_gates(self) -> None:
        """The gates, one by one."""
        training = self.training
        self.app.push_screen(PageScreen("Gates", lambda width: gates_page(training.view, training.notes, width)))

    def action_pause(self) -> None:
        """Wait after the step in flight, or go on."""
        if self._is_mine():
            pause = self.training.controls.pause
            (pause.clear if pause.is_set() else pause.set)()
            self.note = None
            self.show_all()

    def action_save(self) -> None:
        """Write a checkpoint after the step in flight."""
        if self._is_mine():
            self.training.controls.save.set()
            self.say(f"{SAVED_SOON}{' that follows the pause' if self.training.is_paused else ''}")

    def action_trace(self) -> None:
        """Trace the newest checkpoint; the run goes on."""
        view = self.training.view
        if view is None or view.checkpoint is None:
            self.say("There is no checkpoint to trace yet.", "watch")
            return
        self.dismiss()
        self.console.trace_file(view.checkpoint / "model.gguf")

    def action_back(self) -> None:
        """Ask whether to stop our own run; else take the message away; else go back."""
        if self.training.is_under_way and not self.training.controls.stop.is_set():
            question = "Stop this run after the step in flight? A checkpoint is written; it can go on later."
            self.app.push_screen(ConfirmScreen(question, "stop"), self._stop)
        elif self.note is not None:
            self.note = None
            self.show_all()
        else:
            self.action_train()

    def action_train(self) -> None:
        """Back to the trace, the run goes on; out of the console where nothing was ever traced."""
        if self.console.has_run:
            self.dismiss()
        else:
            self.console.leave(0)

    def action_again(self) -> None:
        """Ask for another run, or go on with this one."""
        training = self.training
        if training.is_under_way:
            self.say("A run is under way: escape stops it.", "watch")
        else:
            stopped = training.is_own and state_of(self.training) == INTERRUPTED and training.view is not None
            line = f"--resume --out {join_words([str(training.folder)])}" if stopped else training.line
            ask_training(self.console, self.say, line, self._replace)

    def _stop(self, yes: bool | None) -> None:
        if yes:
            self.training.stop()
            self.note = None
            self.show_all()

    def _is_mine(self) -> bool:
        """Whether this console controls the run; says why where it does not."""
        if not self.training.is_under_way:
            self.say("The run has ended; r asks for another." if self.training.is_own else WATCHED, "watch")
        return self.training.is_under_way

    def _replace(self, training: Training) -> None:
        """Show another run."""
        self.training.target = None
        self.training.leave(0.0)
        self.training = self.console.training = training
        training.target, self.note = self, None
        training.start()
        self.show_all()
