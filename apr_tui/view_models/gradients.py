"""Hold what the grid of a training run shows: layers x gradient norm, update / weight ratio, share of exact zeros.

A dead block is seen here while the loss still falls. It ends no run: that is core's rules'.
"""

from __future__ import annotations

import math
import statistics

from apr_tui.style import STATES, Rows, Span
from apr_tui.view_models.number import shorten
from core.trace.finding import BAD, OK, UNKNOWN, WATCH
from core.train.records import GradRow, Grads

COLUMNS = ("grad_norm", "update_ratio", "zero_share")
MEANINGS = {
    "grad_norm": "L2 norm of the layer's gradient, before clipping",
    "update_ratio": "|new - old| / |old| of the layer's weights",
    "zero_share": "share of the gradient's values that are exactly 0",
}
FALL = 0.1      # below a tenth of the column's median: watch
MANY_ZEROS = 0.5
NAME, NUMBER = 20, 9  # columns of the table of parameters


class GradView:
    """The newest gradient table of a run."""

    def __init__(self) -> None:
        self.grads: Grads | None = None
        self._n_layer = 0
        self._rows: dict[int | None, GradRow] = {}
        self._middle: dict[str, float] = {}

    @property
    def n_row(self) -> int:
        """Layers of the model."""
        return self._n_layer

    def take(self, grads: Grads | None, n_layer: int) -> None:
        """Take the newest table."""
        self.grads, self._n_layer = grads, n_layer
        self._rows = {row.layer: row for row in grads.rows} if grads is not None else {}
        for column in COLUMNS:
            numbers = [n for layer in range(n_layer) if (n := self.number(layer, column)) is not None]
            finite = [n for n in numbers if math.isfinite(n)]
            self._middle[column] = statistics.median(finite) if finite else 0.0

    def number(self, layer: int | None, column: str) -> float | None:
        """One figure of a layer; layer None: what stands outside the layers. None where it was not measured."""
        row = self._rows.get(layer)
        found: float | None = getattr(row, column) if row is not None else None
        return found

    def mark(self, layer: int | None, column: str) -> str:
        """Bad: no gradient at all, no update, all zeros, or not finite. Watch: a tenth of the median, half zeros."""
        number = self.number(layer, column)
        if number is None:
            return UNKNOWN
        if not math.isfinite(number):
            return BAD
        if column == "zero_share":
            return BAD if number >= 1 else WATCH if number >= MANY_ZEROS else OK
        return BAD if number == 0 else WATCH if number < FALL * self._middle[column] else OK

    def tone(self, place: tuple[int | None, str]) -> str:
        """The style of a cell."""
        return STATES[self.mark(*place)][1]

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text and mark of a cell."""
        return shorten(self.number(row, column), self.mark(row, column))

    def dead(self) -> list[int]:
        """Layers without any gradient."""
        return [layer for layer in range(self._n_layer) if self.number(layer, "grad_norm") == 0]

    def parameter_lines(self, layer: int | None, width: int) -> Rows:
        """Each parameter of a layer with its three figures; layer None: those outside the layers."""
        heads = "".join(f"{c.rpartition('_')[0]:>{NUMBER}}" for c in COLUMNS)
        title = "outside the layers" if layer is None else f"layer {layer}"
        lines: Rows = [[(f"{title:<{NAME}}", "title"), (heads, "quiet")]]
        for name, figures in (self.grads.parameters if self.grads is not None else {}).items():
            head, _, tail = name.partition(f"blk.{layer}.") if layer is not None else ("", "", name)
            if head or not tail or (layer is None and name.startswith("blk.")):
                continue
            spans: list[Span] = [(f"{tail.removesuffix('.weight')[:NAME]:<{NAME}}", "text")]
            for number in figures:
                spans.append((f"{shorten(number, UNKNOWN if number is None else OK)[0]:>{NUMBER}}",
                              "bad" if number is not None and not math.isfinite(number) else "text"))
            lines.append(spans)
        return lines if len(lines) > 1 else []
