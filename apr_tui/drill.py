"""The drill-down of a layer: every statistic of its stages, and under them all that is known about the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import events
from textual.app import ComposeResult
from textual.screen import Screen

from apr_tui.keys import DRILL, bindings, hint_spans
from apr_tui.page import PageScreen, help_build
from apr_tui.paint import Lines, foreign
from apr_tui.stage_lines import (
    beside,
    channel_lines,
    everything,
    finding_lines,
    rule,
    table_header,
    table_row,
    token_lines,
    weight_lines,
    why_lines,
)
from core.errors import AprError
from core.stages import GRID, STAGES, Place, place_text

if TYPE_CHECKING:
    from apr_tui.trace_screen import TraceScreen

LEFT = 39  # columns of the tokens, of 80; half of a wider screen


class DrillScreen(Screen[None]):
    """One layer of the trace under it; it moves the grid's cursor along."""

    BINDINGS = bindings(DRILL)

    def __init__(self, under: TraceScreen) -> None:
        super().__init__()
        self.under, self.view = under, under.view
        self.at_layer, self.stage = under.grid.place
        self.has_detail = False
        self.head, self.table, self.pane, self.foot = (Lines(i, 1) for i in ("title", "table", "pane", "foot"))

    def compose(self) -> ComposeResult:
        """Title, table of stages, what is known about one, foot."""
        yield from (self.head, self.table, self.pane, self.foot)

    def on_resize(self, event: events.Resize) -> None:
        """Draw for the size."""
        self.call_after_refresh(self.show_all)

    @property
    def places(self) -> list[Place]:
        """The layer's stages; the whole model's beside the first and the last layer."""
        last = self.at_layer == self.view.n_row - 1
        found: list[Place] = []
        for stage in STAGES:
            if stage.whole:
                if (self.at_layer == 0) if stage.name == "embedding" else last:
                    found.append((None, stage.name))
            elif stage.name in GRID or self.has_detail:
                found.append((self.at_layer, stage.name))
        return found

    @property
    def place(self) -> Place:
        """The chosen stage."""
        found = [place for place in self.places if place[1] == self.stage]
        return found[0] if found else (self.at_layer, "output")

    def show_all(self) -> None:
        """Draw everything; only lines that changed go over the wire."""
        width, height = self.size
        if not width:
            return
        rows = [table_row(self.view, place, place == self.place, width) for place in self.places]
        self.head.show([self.under.title_spans(width)])
        table = [rule(f"layer {self.at_layer} of {self.view.n_row}", width), table_header(width), *rows]
        self.table.show(table)
        self.pane.show(self.pane_lines(width, max(height - 2 - len(table), 0)))
        self.foot.show([hint_spans(DRILL, width)])

    def pane_lines(self, width: int, height: int) -> list[list[tuple[str, str]]]:
        """What is known about the chosen stage, as much as there is room for; enter shows all."""
        place = self.place
        own = finding_lines(self.view, place[0], place[1], width)[:2]
        findings = own or finding_lines(self.view, place[0], None, width)[:1]
        room = height - 1 - len(findings)
        if room < 2:
            return [rule(place_text(place), width), *findings][:height]
        left = max(LEFT, width // 2)
        side = width - left - 1
        why = why_lines(self.view, place, side)
        weights = weight_lines(self.weights(place), side)
        channels = channel_lines(self.view, place, max(room - len(why) - len(weights) - 1, 2))
        parts = [part for part in (why, weights, channels) if part]
        gap: list[list[tuple[str, str]]] = [[]] if height > 24 else []
        right = [line for part in parts for line in [*part, *gap]]
        lines = beside(token_lines(self.view, place, left - 1, room), right, left, room)
        return [rule(self._heading(place), width), *lines, *findings]

    def weights(self, place: Place) -> Sequence[tuple[str, str, tuple[int, ...]]]:
        """The weights behind a stage; none where a bundle is shown."""
        traced = self.under.traced
        model = traced.model if traced else self.under.known.get("model")
        if model is None:
            return ()
        try:
            return self.under.console.door_source().weights_behind(model, *place)
        except AprError:
            return ()

    def action_move(self, rows: int, columns: int) -> None:
        """Another stage, or another layer."""
        if columns:
            self.at_layer = min(max(self.at_layer + columns, 0), self.view.n_row - 1)
        names = [name for _, name in self.places]
        at = names.index(self.place[1]) + rows
        self.stage = names[min(max(at, 0), len(names) - 1)]
        self._moved()

    def action_page(self, direction: int) -> None:
        """First or last stage."""
        self.action_move(direction * len(self.places), 0)

    def action_end(self, direction: int) -> None:
        """First or last layer."""
        self.at_layer = 0 if direction < 0 else self.view.n_row - 1
        self._moved()

    def action_detail(self) -> None:
        """Show or hide the detail stages."""
        self.has_detail = not self.has_detail
        self.show_all()

    def action_scope(self) -> None:
        """Next scope, for the grid too."""
        self.under.set_scope(self.view.next_scope(self.place))
        self.show_all()

    def action_open(self) -> None:
        """Everything about the stage."""
        place = self.place
        title = f"{foreign(self.under.model_name)}  {place_text(place)}"
        self.app.push_screen(PageScreen(title, lambda width: everything(self.view, place, self.weights, width)))

    def action_back(self) -> None:
        """Back to the grid."""
        self.dismiss()

    def action_help(self) -> None:
        """The help page."""
        self.app.push_screen(PageScreen("Help", help_build))

    def action_quit(self) -> None:
        """Leave the console."""
        self.under.console.leave(0)

    def _moved(self) -> None:
        column = GRID.index(self.stage) if self.stage in GRID else None
        self.under.grid.go(self.at_layer, column)
        self.show_all()

    def _heading(self, place: Place) -> str:
        cell = self.view.cells.get(place)
        width = getattr(cell, "width", None)
        if cell is None or width is None:
            return place_text(place)
        return f"{place_text(place)}: {len(cell.mean)} tokens x {width} values"
