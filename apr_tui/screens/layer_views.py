"""The views of a layer that are asked for by a key: they run the model up to that layer once and keep what came.

A screen owns one and hands it its keys; it draws nothing by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr_tui.render.status import error_note
from apr_tui.render.views import attention_lines, histogram_lines, lens_lines, spread_view
from apr_tui.style import Rows
from apr_tui.workers.jobs import view_job
from core.model.stages import place_text
from core.system.errors import Cancelled

if TYPE_CHECKING:
    from core.trace.look_inside import LayerView

VIEWS = {"histogram": "values of {place}", "spread": "weights behind {place}",
         "attention": "attention of layer {layer}", "lens": "logit lens of layer {layer}"}
NEED_NO_RUN = ("spread",)


class LayerViews:
    """Which view is shown, of which head, and what is known of each layer."""

    def __init__(self, screen: Any) -> None:  # noqa: ANN401 (the trace's LayerScreen, which makes it)
        self.screen = screen
        self.shown = ""
        self.head = 0
        self.found: dict[int, LayerView] = {}
        self.note: tuple[str, str] | None = None

    def toggle(self, name: str) -> None:
        """Show a view, or hide it where it is shown."""
        self.shown = "" if self.shown == name else name
        self.ask()

    def ask(self) -> None:
        """Run for what the shown view lacks of the layer."""
        host, layer, under = self.screen.console, self.screen.at_layer, self.screen.under
        self.note = None
        if not self.shown or self.shown in NEED_NO_RUN or layer in self.found:
            return
        if under.traced is None or under.traced.model is None or under.traced.path is None:
            self.note = ("Only a model file whose trace has ended can be looked into.", "watch")
        else:
            host.run_job(self.screen, "view", view_job(under.request, under.traced.path, layer, host.get_session))

    def finished(self, result: Any, error: Exception | None) -> None:  # noqa: ANN401 (a LayerView)
        """Take the end of a run."""
        if error is None:
            self.found[result.layer] = result
        elif not isinstance(error, Cancelled):
            self.note = error_note(error)

    def next_head(self, step: int) -> None:
        """Another head of the attention."""
        view = self.found.get(self.screen.at_layer)
        if self.shown == "attention" and view is not None and view.attention is not None:
            self.head = (self.head + step) % len(view.attention)

    @property
    def title(self) -> str:
        """What is shown."""
        return VIEWS[self.shown].format(place=place_text(self.screen.place), layer=self.screen.at_layer)

    def lines(self, width: int, height: int) -> Rows:
        """The view in so many lines."""
        screen, layer = self.screen, self.screen.at_layer
        place = screen.place
        if self.note is not None:
            return [[(f" {self.note[0]}", self.note[1])]]
        if self.shown == "spread":
            names = [name for name, _, _ in screen.weights(place)]
            return spread_view([(name, screen.spread(name)) for name in names], layer, width, height)
        view = self.found.get(layer)
        if view is None:
            return [[(f" running up to layer {layer} ...", "quiet")]]
        if self.shown == "histogram":
            return histogram_lines(view.histograms.get(place[1]), width, height)
        if self.shown == "attention":
            heads = len(view.attention) if view.attention is not None else 1
            return attention_lines(view, min(self.head, heads - 1), screen.view.tokens, width, height)
        return lens_lines(view, width)
