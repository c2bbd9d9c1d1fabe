"""The frame that trace and comparison share: title, grid, overview, notes, foot, and moving about. No numbers here."""

from __future__ import annotations

import time
from typing import Any

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.geometry import Size
from textual.screen import Screen

from apr_tui.keys import hint_spans
from apr_tui.render.status import step_spans
from apr_tui.render.title import insert_right
from apr_tui.screens.page import BaseScreen
from apr_tui.style import Rows, Span, bar, crop_text, escape_untrusted, to_terminal_charset, wrap, wrap_most
from apr_tui.widgets.grid import GridView
from apr_tui.widgets.lines import Lines
from apr_tui.widgets.overview import Overview
from apr_tui.workers.run import Frame
from core.model.stages import GRID_STAGES, parse_scope, read_whole, stage_named
from core.system.errors import UsageError

MIN_WIDTH, MIN_HEIGHT = 40, 11
DESIGN_WIDTH, DESIGN_HEIGHT = 80, 24
WIDE = 160
NOTE_LINES = 2   # a finding's sentence
LONG_NOTE = 6    # an error's
STRIP_S = 2.0    # while it runs, the overview is drawn this often: a scale that changes repaints it whole
SPIN = "|/-\\"
BUSY_END = 22  # columns of the time and of what esc does


def show_small(screen: Screen[None], small: Lines, size: Size) -> None:
    """Where the window is too small, show that alone."""
    width, height = size
    is_small = width < MIN_WIDTH or height < MIN_HEIGHT
    screen.set_class(is_small, "small")
    if is_small:
        needed = f"{DESIGN_WIDTH} x {DESIGN_HEIGHT} is needed"
        words = f"{width} x {height} is too small: {needed}. Make the window larger; q quits."
        small.show([[(part, "watch")] for part in wrap(words, max(width, 8))])


class GridScreen(BaseScreen):
    """A grid of layers x stages with what belongs to it. A child gives the view and says what the lines hold."""

    job = ""   # the kind of job whose frames hold its numbers

    def __init__(self, view: Any) -> None:  # noqa: ANN401 (TraceView, PairView or CheckView)
        super().__init__()
        self.view = view
        self.note: tuple[str, str] | None = None  # text and style; None: the child's own
        self.progress: Frame | None = None
        self._strip_drawn = 0.0
        self.head, self.notes = Lines("title", 1), Lines("notes", NOTE_LINES)
        self.foot, self.small = Lines("foot", 3), Lines("small", 1)
        self.grid = GridView(view, GRID_STAGES, id="grid")
        self.overview = Overview(view, GRID_STAGES, id="overview")

    def compose(self) -> ComposeResult:
        """Title, grid beside overview, notes, foot; or nothing but that it is too small."""
        yield self.head
        with Horizontal(id="body"):
            yield self.grid
            yield self.overview
        yield self.notes
        yield self.foot
        yield self.small

    def on_resize(self, event: events.Resize) -> None:
        """Lay out for the size: too small, narrow, or wide."""
        width = event.size.width
        show_small(self, self.small, event.size)
        if (width >= WIDE) != self.has_class("wide"):
            self.set_class(width >= WIDE, "wide")
            self.set_class(width >= WIDE, "strip")
        self.call_after_refresh(self.show_all)

    def on_grid_view_moved(self) -> None:
        """The line about the cell goes with the cursor; the title says which rows are in view."""
        self._show_title(self.size.width)
        self.show_foot()
        self._show_strip(self.console.owner is self)

    def show_all(self) -> None:
        """Draw everything again: another run, scope, metric or size."""
        self.grid.show_all()
        self._show_strip(False)
        self.show_lines()

    def show_lines(self) -> None:
        """Draw title, notes and foot again; only lines that changed go over the wire."""
        width = self.size.width
        self._show_title(width)
        if self.note is not None:
            text, name = self.note
            notes = [[(f" {part}", name)] for part in wrap_most(text, width - 2, LONG_NOTE)]
        else:
            notes = self.note_lines(width)
        notes += [[] for _ in range(NOTE_LINES - len(notes))]
        self.notes.show(notes)
        self.show_foot()

    def _show_title(self, width: int) -> None:
        seen, n_row = self.grid.shown_rows, self.view.n_row
        is_part = self.grid.display and 0 < len(seen) < n_row
        rows = f"rows {seen.start} to {seen.stop - 1} of {n_row}" if is_part else ""
        self.head.show([insert_right(self.title_spans(width), rows)])

    def show_foot(self) -> None:
        """Draw the lines about the cell and the run again."""
        width = self.size.width
        status = self.busy_spans(width) or self.status_spans(width)
        self.foot.show([self.cell_spans(width), status, hint_spans(self.kind, width)])

    def show_frame(self, frame: Frame) -> None:
        """Take a run's newer frame: the child grows its view; only changed rows are repainted."""
        last = self.progress
        if last is not None and (frame.serial, frame.number) <= (last.serial, last.number):
            return
        self.progress = frame
        if frame.kind != self.job:  # an export or a search for hints measures nothing
            self.show_lines()
            return
        rows = self.update_view(frame)
        self.grid.show_rows(rows)
        if frame.latest is not None and frame.latest[0] is not None:
            self.grid.follow(frame.latest[0], frame.latest[1])
        self._show_strip(True)
        self.show_lines()

    def busy_spans(self, width: int) -> list[Span]:
        """What runs, for how long, how far: nothing within the first tenth of a second."""
        seconds = self.console.busy_seconds()
        if seconds is None or seconds < 0.1:
            return []
        frame = self.progress
        spans: list[Span] = [(f" {SPIN[int(seconds * 4) % 4]} ", "a")]
        layer = frame.latest[0] if frame is not None and frame.latest is not None else None
        if frame is not None and frame.step is not None:
            spans += crop_text(step_spans(frame, time.monotonic() - frame.since), width - 3 - BUSY_END)
        elif frame is None or layer is None or not frame.n_layer:
            spans.append((escape_untrusted(frame.phase if frame else "starting"), "text"))
        else:
            done = sum(stage == "output" for cells in frame.cells.values() for _, stage in cells)
            share = done / (frame.n_layer * max(len(frame.cells), 1))
            spans += [(f"layer {layer} of {frame.n_layer} ", "text"), (bar(share, 20), "a"), (f" {share:4.0%}", "text")]
        return [*spans, (to_terminal_charset(f" · {seconds:.0f} s · "), "quiet"), ("esc", "key"), (" cancels", "quiet")]

    def _show_strip(self, is_running: bool) -> None:
        """Draw the overview again, while it runs not at every cell."""
        if self.has_class("strip") and not (is_running and time.monotonic() - self._strip_drawn < STRIP_S):
            self._strip_drawn = time.monotonic()
            self.overview.show_all(self.grid.place)

    # what a child says

    @property
    def planted(self) -> str | None:
        """The bug that was planted on purpose; not yet safe to show."""
        raise NotImplementedError

    def update_view(self, frame: Frame) -> set[int]:
        """Take the frame's numbers; returns the rows that changed."""
        raise NotImplementedError

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the end of a job that this screen started."""
        raise NotImplementedError

    def title_spans(self, width: int) -> list[Span]:
        """First line."""
        raise NotImplementedError

    def note_lines(self, width: int) -> Rows:
        """The lines under the grid."""
        raise NotImplementedError

    def cell_spans(self, width: int) -> list[Span]:
        """The line about the cell under the cursor."""
        raise NotImplementedError

    def status_spans(self, width: int) -> list[Span]:
        """The line about the run, when nothing runs."""
        raise NotImplementedError

    def scope_changed(self) -> None:
        """The scope is another one."""
        raise NotImplementedError

    # actions (keys.KEYS)

    def say(self, text: str, name: str = "text") -> None:
        """Put a message under the grid until the next one."""
        self.note = (text, name)
        self.show_lines()

    def clear_note(self) -> None:
        """Take the message away."""
        if self.note is not None:
            self.note = None
            self.show_lines()

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor."""
        self.grid.move(rows, columns)

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        self.grid.page(direction)

    def action_end(self, direction: int) -> None:
        """To the first or the last layer."""
        self.grid.go(0 if direction < 0 else self.view.n_row)

    def action_metric(self) -> None:
        """Next metric."""
        self.view.select(metric=self.view.next_metric())
        self.show_all()

    def action_scope(self) -> None:
        """Next scope."""
        self.set_scope(self.view.next_scope(self.grid.place))

    def set_scope(self, scope: str) -> None:
        """Show the numbers at a scope."""
        self.view.select(scope=scope)
        self.scope_changed()
        self.show_all()

    def action_overview(self) -> None:
        """Show or hide the overview strip: beside the grid where there is room, else instead of it."""
        self.toggle_class("strip")
        self.call_after_refresh(self.show_all)

    def action_jump(self) -> None:
        """Ask where to."""
        hint = "3.ffn_swigl, 12, qkv, or a scope: all last first rest pos:4"
        self.console.ask("jump to", "", hint, self.jump)

    def jump(self, text: str) -> None:
        """Go to a place or a scope."""
        self.note = None
        try:
            layer, stage, scope = read_jump(text.strip())
            if scope:
                self.set_scope(scope)
                return
            row = self.grid.row if layer is None else layer
            self.grid.go(row, self.column_of(stage) if stage else None)
        except UsageError as error:
            self.say(str(error), "watch")
            return
        if row >= self.view.n_row:
            self.say(f"there is no layer {row}: the last is {self.view.n_row - 1}.", "watch")
        self.show_lines()

    def column_of(self, stage: str) -> int:
        """The column of a stage; UsageError where it has none."""
        if stage in self.grid.columns:
            return self.grid.columns.index(stage)
        columns = ", ".join(self.grid.columns)
        raise UsageError(f"{stage} is not a column of the grid; open its layer and press d. Columns: {columns}.")


def read_jump(text: str) -> tuple[int | None, str | None, str | None]:
    """Read what was typed at /: (layer, stage, scope); UsageError."""
    layer, dot, stage = text.partition(".")
    row = read_whole(layer)
    if row is not None:
        return row, stage_named(stage).name if dot else None, None
    try:
        return None, None, parse_scope(text)
    except UsageError:
        return None, stage_named(text).name, None
