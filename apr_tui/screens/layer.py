"""The frame that the drill-downs share: a layer's stages as a table, and a pane about one of them. No numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import ComposeResult

from apr_tui.keys import hint_spans
from apr_tui.render.stage import rule
from apr_tui.screens.page import BaseScreen, PageScreen
from apr_tui.style import Rows, Span
from apr_tui.widgets.lines import Lines
from core.model.stages import GRID_STAGES, STAGES, Place
from core.system.errors import AprError

if TYPE_CHECKING:
    from apr_tui.screens.grid import GridScreen
    from apr_tui.session import WeightFacts
    from core.formats.model_file import ModelFile


class LayerScreen(BaseScreen):
    """One layer of the grid under it; it moves that grid's cursor along. A child says what the lines hold."""

    def __init__(self, under: Any, has_detail: bool = False) -> None:  # noqa: ANN401 (a child's own GridScreen)
        super().__init__()
        self.under: GridScreen = under
        self.view = under.view
        self.at_layer, self.stage = under.grid.place
        self.has_detail = has_detail
        self._top = 0  # of the stages: the first in view
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
            elif stage.name in GRID_STAGES or (self.has_detail and (
                    not stage.special or (self.at_layer, stage.name) in self.view.known)):
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
        places, most = self.places, max(height - 4, 1)
        self._top = top = max(min(places.index(self.place) - most // 2, len(places) - most), 0)
        rows = [self.table_row(place, place == self.place, width) for place in places[top:top + most]]
        self.head.show([self.under.title_spans(width)])
        table = [rule(f"layer {self.at_layer} of {self.view.n_row}", width), self.table_header(width), *rows]
        self.table.show(table)
        room = max(height - 2 - len(table), 0)
        pane = self.pane_lines(width, room)
        self.pane.show([*pane, *[[]] * (room - len(pane))])
        self.foot.show([hint_spans(self.kind, width)])

    def say(self, text: str, name: str = "text") -> None:
        """Show a message in place of the keys, until the screen is drawn anew."""
        self.foot.show([[(f" {text}", name)]])

    # what a child says

    def table_header(self, width: int) -> list[Span]:
        """Names of the columns."""
        raise NotImplementedError

    def table_row(self, place: Place, is_here: bool, width: int) -> list[Span]:
        """One stage."""
        raise NotImplementedError

    def pane_lines(self, width: int, height: int) -> Rows:
        """What is known about the chosen stage, as much as there is room for; enter shows all."""
        raise NotImplementedError

    def open_title(self) -> str:
        """Title of the page that enter opens."""
        raise NotImplementedError

    def open_lines(self, place: Place, width: int) -> Rows:
        """Lines of the page that enter opens."""
        raise NotImplementedError

    def model(self) -> ModelFile | None:
        """The opened model, where there is one."""
        return None

    def weights(self, place: Place) -> Sequence[WeightFacts]:
        """The weights behind a stage; none where a bundle is shown."""
        model = self.model()
        try:
            return self.console.get_session().weights_behind(model, *place) if model is not None else ()
        except AprError:
            return ()

    def on_click(self, event: events.Click) -> None:
        """Choose the stage that is clicked."""
        at = event.screen_y - 3  # title, rule, header
        if 0 <= at < len(self.table.lines) - 2:
            self.stage = self.places[self._top + at][1]
            self._moved()

    # actions (keys.KEYS)

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
        title, planted = self.open_title(), self.under.planted
        self.app.push_screen(PageScreen(title, lambda width: self.open_lines(place, width), planted))

    def _moved(self) -> None:
        columns = self.under.grid.columns
        self.under.grid.go(self.at_layer, columns.index(self.stage) if self.stage in columns else None)
        self.show_all()
