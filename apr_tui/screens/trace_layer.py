"""The drill-down of a layer: every statistic of its stages, and under them all that is known about the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr_tui.keys import LAYER_KEYS, bindings
from apr_tui.render.audit import spread_lines
from apr_tui.render.stage import (
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
from apr_tui.screens.layer import LayerScreen
from apr_tui.screens.layer_views import LayerViews
from apr_tui.style import Rows, Span, escape_untrusted
from core.model.stages import Place, place_text

if TYPE_CHECKING:
    from apr_tui.screens.trace import TraceScreen
    from apr_tui.workers.run import Frame
    from core.audit.spread import Spread
    from core.formats.model_file import ModelFile

FACTS = 13  # lines of the facts over a view
LEFT = 39  # columns of the tokens, of 80; half of a wider screen


class TraceLayerScreen(LayerScreen):
    """One layer of the trace under it."""

    BINDINGS = bindings(LAYER_KEYS)
    kind = LAYER_KEYS
    under: TraceScreen

    def __init__(self, under: Any, has_detail: bool = False) -> None:  # noqa: ANN401 (as its parent's)
        super().__init__(under, has_detail)
        self.views = LayerViews(self)
        self.spreads: dict[str, Spread | None] = {}  # by weight: the cursor moves more often than a file changes

    def table_header(self, width: int) -> list[Span]:
        """Names of the columns."""
        return table_header(width)

    def table_row(self, place: Place, is_here: bool, width: int) -> list[Span]:
        """All statistics of a stage."""
        return table_row(self.view, place, is_here, width)

    def pane_lines(self, width: int, height: int) -> Rows:
        """What is known about the chosen stage, as much as there is room for; enter shows all."""
        if self.views.shown:
            return self._with_view(width, height)
        return self._facts(width, height)

    def _with_view(self, width: int, height: int) -> Rows:
        """The chosen view, under the facts where there is room for both."""
        above = self._facts(width, FACTS) if height >= 2 * FACTS else []
        room = height - len(above) - 1
        return [*above, rule(self.views.title, width), *self.views.lines(width, room)][:height]

    def _facts(self, width: int, height: int) -> Rows:
        place = self.place
        own = finding_lines(self.view, place[0], place[1], width)[:2]
        findings = own or finding_lines(self.view, place[0], None, width)[:1]
        room = height - 1 - len(findings)
        if room < 2:
            return [rule(place_text(place), width), *findings][:height]
        left = max(LEFT, width // 2)
        side = width - left - 1
        why = why_lines(self.view, place, side)
        weights = weight_lines(self.weights(place), side, self.spread_lines)
        channels = channel_lines(self.view, place, max(room - len(why) - len(weights) - 1, 1))
        parts = [part for part in (why, weights, channels) if part]
        gap: Rows = [[]] if height > 24 else []
        right = [line for part in parts for line in [*part, *gap]]
        lines = beside(token_lines(self.view, place, left - 1, room), right, left, room)
        return [rule(self._heading(place), width), *lines, *findings]

    def model(self) -> ModelFile | None:
        """The traced model, or the one being traced."""
        traced = self.under.traced
        return traced.model if traced else self.under.known.get("model")

    def open_title(self) -> str:
        """Title of the page of one stage."""
        return f"{escape_untrusted(self.under.model_name)}  {place_text(self.place)}"

    def open_lines(self, place: Place, width: int) -> Rows:
        """Everything about a stage."""
        return everything(self.view, place, self.weights, width, self.spread_lines)

    def spread_lines(self, name: str, width: int) -> Rows:
        """A weight's level beside its siblings'; nothing while a trace runs, or of a bundle."""
        return spread_lines(self.spread(name), width)

    def spread(self, name: str) -> Spread | None:
        """A weight's level beside its siblings'; None while a trace runs, or of a bundle."""
        traced = self.under.traced
        if traced is None or traced.model is None:
            return None
        if name not in self.spreads:
            self.spreads[name] = self.console.get_session().weight_spread(traced.model, name)
        return self.spreads[name]

    # what the console asks of a screen that runs a job

    def show_frame(self, frame: Frame) -> None:
        """A view's run measures nothing that is shown."""

    def show_lines(self) -> None:
        """Nothing on this screen counts the time."""

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take what a view asked for."""
        self.views.finished(result, error)
        self.show_all()

    def say(self, text: str, name: str = "text") -> None:
        """Put a message where the view would be."""
        self.views.note = (text, name)
        self.show_all()

    def command(self) -> str:
        """The trace's."""
        return self.under.command()

    # actions

    def action_view(self, name: str) -> None:
        """Show or hide a view."""
        self.views.toggle(name)
        self.show_all()

    def action_head(self, step: int) -> None:
        """Another head of the attention."""
        self.views.next_head(step)
        self.show_all()

    def action_back(self) -> None:
        """Hide the view; else leave."""
        if self.views.shown:
            self.console.cancel_job()
            self.views.shown = ""
            self.show_all()
        else:
            self.dismiss()

    def _moved(self) -> None:
        self.views.ask()
        super()._moved()

    def _heading(self, place: Place) -> str:
        cell = self.view.cells.get(place)
        width = getattr(cell, "width", None)
        if cell is None or width is None:
            return place_text(place)
        return f"{place_text(place)}: {cell.n_token} tokens x {width} values"
