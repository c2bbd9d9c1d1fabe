"""The drill-down of a comparison: local and inherited error of a layer's stages, and all about one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_tui.keys import LAYER_KEYS, bindings
from apr_tui.render.pair import cell_lines, distance_spans, layer_header, layer_row, side_lines
from apr_tui.render.stage import clip, rule
from apr_tui.render.verdict_card import error_rows
from apr_tui.screens.layer import LayerScreen
from apr_tui.style import Rows, Span, escape_untrusted, to_terminal_charset, wrap
from core.model.stages import Place, place_text

if TYPE_CHECKING:
    from apr_tui.screens.compare import CompareScreen
    from apr_tui.view_models.pair import PairView


class CompareLayerScreen(LayerScreen):
    """One layer of the comparison under it."""

    BINDINGS = bindings(LAYER_KEYS)
    kind = LAYER_KEYS
    under: CompareScreen
    view: PairView

    def table_header(self, width: int) -> list[Span]:
        """Names of the columns."""
        return layer_header()

    def table_row(self, place: Place, is_here: bool, width: int) -> list[Span]:
        """One stage."""
        return layer_row(self.view, place, is_here)

    def pane_lines(self, width: int, height: int) -> Rows:
        """What is said of the chosen stage, then both sides' statistics as far as there is room."""
        said = self.cell_lines(self.place, width)
        numbers = [distance_spans(self.view, self.place), *side_lines(self.view, self.place, width)]
        return clip([rule(place_text(self.place), width), *said, *numbers], height)

    def cell_lines(self, place: Place, width: int) -> Rows:
        """What float64 and the grafts say of a stage; nothing where they were not asked about it."""
        found, bisection = self.view.comparison, self.under.bisection
        lines: Rows = []
        if found is not None and place == found.first and found.error is not None:
            lines += error_rows(place, found.error)
            lines[0] = [(f" side {found.side or 'A and B'} against float64, on its own inputs", "title")]
            guess = f"looks like this: {escape_untrusted(found.error.guess)}" if found.error.guess else ""
            lines += [[(f"   {part}", "watch")] for part in wrap(to_terminal_charset(guess), width - 5) if part]
        ladder = bisection.ladder if bisection else None
        rungs = [r for r in ladder.rungs if r.place == place] if ladder else []
        for rung in rungs[:1]:
            lines.append([("   graft     ", "quiet"), (f"{rung.recovered:>7.1%}", "title"),
                          (" of the logits' KL comes back with B's value in A", "quiet")])
        return lines

    def open_title(self) -> str:
        """Title of the page of one cell."""
        return f"A {escape_untrusted(self.under.a.name)}  B {escape_untrusted(self.under.b.name)}"

    def open_lines(self, place: Place, width: int) -> Rows:
        """Everything about a cell."""
        lines = cell_lines(self.view, place, width)
        return [*lines[:2], *self.cell_lines(place, width), *lines[2:]]
