"""The bill of damage, run here or saved: layers x tensors, the tensors in order of cost, their rows, the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal

from apr_tui.keys import DAMAGE_KEYS, bindings, hint_spans
from apr_tui.render.damage import meaning, ranked_lines, recipe_page, row_lines, sum_lines, tensor_spans
from apr_tui.render.status import error_note, export_note, seconds_text, step_spans
from apr_tui.render.title import fit_names, push_right
from apr_tui.screens.grid import WIDE, show_small
from apr_tui.screens.page import BaseScreen, PageScreen
from apr_tui.style import Rows, Span, escape_untrusted, wrap
from apr_tui.view_models.damage import DamageView
from apr_tui.widgets.grid import GridView
from apr_tui.widgets.lines import Lines
from apr_tui.widgets.page import Page
from apr_tui.workers.jobs import damage_job
from apr_tui.workers.run import Frame
from core.system.errors import Cancelled
from core.system.numbers import short
from core.system.safe_text import join_words

if TYPE_CHECKING:
    from apr_tui.request import Request
    from core.damage.result import Damage, TensorDamage

NOTE_LINES, FOOT_LINES = 3, 3


class DamageScreen(BaseScreen):
    """One bill. path: the file that is billed, or the folder of a saved bill."""

    BINDINGS = bindings(DAMAGE_KEYS)
    kind = DAMAGE_KEYS

    def __init__(self, request: Request, path: Path, saved: Damage | None = None) -> None:
        super().__init__()
        self.request, self.path, self.is_saved = request, path, saved is not None
        self.view = DamageView(saved)
        self.note: tuple[str, str] | None = None
        self.seconds: float | None = None
        self.frame: Frame | None = None
        self.at = 0  # in the order of cost
        self.head, self.notes = Lines("title", 1), Lines("notes", NOTE_LINES)
        self.foot, self.small = Lines("foot", FOOT_LINES), Lines("small", 1)
        self.grid = GridView(self.view, self.view.columns, id="grid")
        self.ranked = Page(lambda width: ranked_lines(self.view, width))
        self.ranked.id = "overview"  # it stands where the overview stands, and as that is laid out

    def compose(self) -> ComposeResult:
        """Title, grid beside the order of cost, notes, foot; or nothing but that it is too small."""
        yield self.head
        with Horizontal(id="body"):
            yield from (self.grid, self.ranked)
        yield from (self.notes, self.foot, self.small)

    def on_mount(self) -> None:
        """Bill, where nothing is saved."""
        if self.is_saved:
            self.call_after_refresh(self._show_bill)
        else:
            self.action_run()

    def on_resize(self, event: events.Resize) -> None:
        """Lay out for the size."""
        show_small(self, self.small, event.size)
        for name in ("wide", "strip"):
            self.set_class(event.size.width >= WIDE, name)
        self.call_after_refresh(self.show_all)

    def on_grid_view_moved(self) -> None:
        """The line about the tensor goes with the cursor."""
        self.show_lines()

    @property
    def tensor(self) -> TensorDamage | None:
        """The tensor under the cursor."""
        return self.view.at.get(self.grid.place)

    # what is shown

    def show_all(self) -> None:
        """Draw everything again."""
        self.grid.show_all()
        self.ranked.on_resize()
        self.show_lines()

    def show_lines(self) -> None:
        """Draw title, notes and foot again."""
        width = self.size.width
        right = f"{seconds_text(self.console.busy_seconds() if self._is_busy else self.seconds, self._is_busy)} "
        name, = fit_names([self.path.name], max(width - 40, 8), 8)
        self.head.show([push_right([(f" {name}", "title"), ("  damage  ", "quiet"), (self.view.metric, "title")], right,
                                   width)])
        notes: Rows = []
        if self.note is not None:
            notes = [[(f" {part}", self.note[1])] for part in wrap(self.note[0], width - 2)[:NOTE_LINES]]
        elif self.view.bill is not None:
            notes = sum_lines(self.view.bill, width)
        self.notes.show([*notes, *[[]] * (NOTE_LINES - len(notes))])
        self.foot.show([tensor_spans(self.view, self.tensor) if self.view.bill is not None else [],
                        self._busy_spans() or [(f" {meaning(self.view)}", "quiet")], hint_spans(self.kind, width)])

    @property
    def _is_busy(self) -> bool:
        return self.console.owner is self

    def _busy_spans(self) -> list[Span]:
        if not self._is_busy:
            return []
        frame, seconds = self.frame, self.console.busy_seconds() or 0.0
        if frame is not None and frame.step is not None:
            return [(" ", "text"), *step_spans(frame, seconds), (f"  {seconds:.0f} s  esc cancels", "quiet")]
        return [(f" {escape_untrusted(frame.phase if frame else 'starting')}  {seconds:.0f} s  esc cancels", "quiet")]

    def _show_bill(self) -> None:
        self.grid.columns = self.view.columns
        inside = [i for i, tensor in enumerate(self.view.ranked) if tensor.layer is not None]
        self._go_to_rank(inside[0] if inside else 0)
        self.show_all()

    def _go_to_rank(self, at: int) -> None:
        self.at = at % max(len(self.view.ranked), 1)
        tensor = self.view.ranked[self.at] if self.view.ranked else None
        place = self.view.place_of(tensor) if tensor is not None else None
        if place is not None:
            self.grid.go(*place)
        elif tensor is not None:
            name = escape_untrusted(tensor.name)
            self.note = (f"{name}: outside the layers, {short(tensor.kl)} nats a token", "text")

    # what the console asks of a screen that runs a job

    def show_frame(self, frame: Frame) -> None:
        """Take how far it is."""
        self.frame = frame
        self.show_lines()

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the bill, or why there is none, or the end of an export."""
        if kind == "export":
            self.note = export_note(result, error)
        elif error is not None:
            self.note = ("cancelled: no bill", "watch") if isinstance(error, Cancelled) else error_note(error)
        else:
            self.seconds, self.note = self.console.run_seconds, None
            self.view.take(result)
            self._show_bill()
        self.show_lines()

    def say(self, text: str, name: str = "text") -> None:
        """Put a message under the grid."""
        self.note = (text, name)
        self.show_lines()

    def command(self) -> str:
        """The command that gives this bill without a screen."""
        return join_words(["apr-tui", "show" if self.is_saved else "damage", str(self.path)])

    # actions (keys.KEYS)

    def action_run(self) -> None:
        """Bill the file, again or for the first time."""
        if self.is_saved:
            self.say("This bill was saved: run apr-tui damage FILE for a new one.", "watch")
            return
        self.note, self.frame, self.seconds = None, None, None
        self.console.run_job(self, "damage", damage_job(self.request, self.path, self.console.get_session))

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor; in the list, scroll it."""
        if self.grid.display:
            self.grid.move(rows, columns)
        else:
            self.ranked.scroll_by(rows)

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        if self.grid.display:
            self.grid.page(direction)
        else:
            self.ranked.scroll_by(direction * max(self.ranked.size.height - 1, 1))

    def action_end(self, direction: int) -> None:
        """To the first or the last layer."""
        self.action_page(direction * 1000)

    def action_finding(self, step: int) -> None:
        """The next tensor in order of cost."""
        self.note = None
        self._go_to_rank(self.at + step)
        self.show_lines()

    def action_metric(self) -> None:
        """Next metric."""
        self.view.next_metric()
        self.show_all()

    def action_overview(self) -> None:
        """The tensors in order of cost, instead of the grid or beside it."""
        self.toggle_class("strip")
        self.call_after_refresh(self.show_all)

    def action_open(self) -> None:
        """The rows of the tensor."""
        tensor = self.tensor
        if tensor is not None:
            title = f"{escape_untrusted(self.path.name)}  {escape_untrusted(tensor.name)}"
            self.app.push_screen(PageScreen(title, lambda width: row_lines(tensor, width)))

    def action_card(self) -> None:
        """The recipe."""
        found = self.view.bill
        if found is None:
            self.say("There is no bill yet: wait for its end.", "watch")
        else:
            self.app.push_screen(PageScreen("Recipe", lambda width: recipe_page(found, width)))

    def action_export(self) -> None:
        """Write the bill as a folder."""
        if self.view.bill is None or self.is_saved:
            self.say("A saved bill stands in its folder." if self.is_saved else "There is no bill yet.", "watch")
        else:
            out = Path("evidence") / f"{self.path.stem}-damage"
            self.console.exports.ask(self, self.request.with_file(self.path), self.view.bill, out)

    def action_back(self) -> None:
        """Cancel the run; else take the message away; else leave."""
        if self._is_busy and self.console.cancel_job():
            self.say("cancelling ...", "watch")
        elif self.note is not None:
            self.note = None
            self.show_lines()
        else:
            self.action_quit()
