"""The drill-down of a check: the local errors of a layer's stages, and all about one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_tui.keys import CHECK_LAYER_KEYS, bindings
from apr_tui.render.check import layer_header, layer_row, stage_lines
from apr_tui.render.stage import clip, rule
from apr_tui.screens.layer import LayerScreen
from apr_tui.style import Rows, Span, escape_untrusted
from core.model.stages import Place, place_text

if TYPE_CHECKING:
    from apr_tui.screens.check import CheckScreen
    from apr_tui.view_models.check import CheckView
    from core.formats.model_file import ModelFile


class CheckLayerScreen(LayerScreen):
    """The local errors of one layer, and under them all that is known of the chosen stage."""

    BINDINGS = bindings(CHECK_LAYER_KEYS)
    kind = CHECK_LAYER_KEYS
    under: CheckScreen
    view: CheckView

    def table_header(self, width: int) -> list[Span]:
        """Names of the columns."""
        return layer_header()

    def table_row(self, place: Place, is_here: bool, width: int) -> list[Span]:
        """One stage."""
        return layer_row(self.view, place, is_here, width)

    def pane_lines(self, width: int, height: int) -> Rows:
        """All that the check knows of the chosen stage."""
        lines = stage_lines(self.view, self.place, self.weights(self.place), width)
        return clip([rule(place_text(self.place), width), *lines[1:]], height)

    def open_title(self) -> str:
        """Title of the page of one stage."""
        return f"{escape_untrusted(self.under.path.name)}  {place_text(self.place)}"

    def open_lines(self, place: Place, width: int) -> Rows:
        """The page of one stage."""
        return [[], *stage_lines(self.view, place, self.weights(place), width)]

    def model(self) -> ModelFile | None:
        """The checked model."""
        return self.under.model
