"""Draw the overview strip: stages down, layers across, block heights; one look finds the odd layer. No numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol

from textual.strip import Strip
from textual.widget import Widget

from apr_tui.style import BLOCKS, BLOCKS_ASCII, STATES, Rows, Span, changed, only_ascii, strip
from core.trace.marks import BAD, OK, UNKNOWN, WATCH

LABEL = 11
WORST = (BAD, WATCH)


class StripSource(Protocol):
    """What is drawn: rows (layers), and the number and mark of a cell."""

    @property
    def n_row(self) -> int:
        """Number of layers."""

    def number(self, place: tuple[int | None, str]) -> float | None:
        """The cell's number."""

    def mark(self, place: tuple[int | None, str]) -> str:
        """The cell's mark."""


class Overview(Widget):
    """The strip. Each stage has its own scale; where layers share a column, the worst shows."""

    DEFAULT_CSS = "Overview { width: 1fr; height: 1fr; }"

    def __init__(self, source: StripSource, columns: Sequence[str], id: str | None = None) -> None:
        super().__init__(id=id)
        self.source = source
        self.columns = tuple(columns)
        self.cursor = (0, "")
        self._lines: Rows = []

    def show_all(self, cursor: tuple[int, str]) -> None:
        """Work everything out again and repaint what changed."""
        self.cursor = cursor
        old, self._lines = self._lines, self._drawn()
        for y, (before, after) in enumerate(zip_longest(old, self._lines, fillvalue=())):
            region = changed(before, after, y, self.size.width)
            if region is not None:
                self.refresh(region)

    def on_resize(self) -> None:
        """Another width has other columns."""
        self.show_all(self.cursor)

    def render_line(self, y: int) -> Strip:
        """Draw one line (Textual calls this)."""
        return strip(self._lines[y] if y < len(self._lines) else (), self.size.width)

    def _drawn(self) -> Rows:
        n_layer, width, height = self.source.n_row, self.size.width - LABEL - 1, self.size.height
        if n_layer == 0 or width < 4 or height < len(self.columns):
            return []
        share = math.ceil(n_layer / width)  # layers a column
        wide = max(1, min(width // math.ceil(n_layer / share), 4))  # columns a layer
        groups = [range(i, min(i + share, n_layer)) for i in range(0, n_layer, share)]
        tall = max(1, min((height - 2) // len(self.columns), 5))
        lines = [self._axis(groups, wide)]
        for column in self.columns:
            lines += self._bars(column, groups, wide, tall)
        together = f", {share} layers a column" if share > 1 else ""
        lines.append([(f"{'':{LABEL}}each stage from 0 to its largest, or twice its median{together}", "rule")])
        return lines[:height]

    def _axis(self, groups: Sequence[range], wide: int) -> list[Span]:
        """Every fifth layer's number, and the cursor's, in reverse: the bars under the cursor stay as they are."""
        line = [" "] * (len(groups) * wide + 4)
        last, mark = -9, (0, 0)
        for i, group in enumerate(groups):
            text, at = str(group[0]), i * wide
            if self.cursor[0] in group:
                text = str(self.cursor[0])
                mark = at, at + max(len(text), wide)
            elif group[0] % 5 >= len(group) or at - last <= 3 or mark[0] <= at < mark[1] + 1:
                continue
            line[at:at + len(text)] = text
            last = at
        before, here, after = line[:mark[0]], line[mark[0]:mark[1]], line[mark[1]:]
        return [(" " * LABEL, "quiet"), ("".join(before), "quiet"), ("".join(here), "title+cursor"),
                ("".join(after), "quiet")]

    def _bars(self, column: str, groups: Sequence[range], wide: int, tall: int) -> Rows:
        cells = [self._worst(column, group) for group in groups]
        sizes = [abs(n) for n, _ in cells if n is not None and math.isfinite(n)]
        largest = max(*sizes, 2 * sorted(sizes)[len(sizes) // 2]) if sizes else 0.0
        lines: Rows = [[]] if tall > 1 else []
        tall = max(tall - 1, 1)
        for level in range(tall - 1, -1, -1):
            label = column if level == 0 else ""
            spans: list[Span] = [(f" {label:<{LABEL - 1}}", "title" if column == self.cursor[1] else "quiet")]
            for number, mark in cells:
                name = "bar" if mark == OK else STATES[mark][1]
                glyph = _block(number, largest, level, tall) if number is not None else (mark if level == 0 else " ")
                spans.append((glyph * (wide - (wide > 2)) + " " * (wide > 2), name))
            lines.append(spans)
        return lines

    def _worst(self, column: str, group: range) -> tuple[float | None, str]:
        cells = [(self.source.number((layer, column)), self.source.mark((layer, column))) for layer in group]
        mark = next((m for m in WORST if any(m == seen for _, seen in cells)), cells[0][1])
        numbers = [n for n, _ in cells if n is not None]
        number = max(numbers, key=lambda n: math.inf if math.isnan(n) else abs(n), default=None)
        return number, mark if number is None or mark != UNKNOWN else OK


def _block(number: float, largest: float, level: int, tall: int) -> str:
    blocks = BLOCKS_ASCII if only_ascii() else BLOCKS
    if not math.isfinite(number):
        return "X"
    steps = len(blocks) - 1
    filled = abs(number) / largest * steps * tall if largest else 0.0
    least = 1 if level == 0 else 0  # a value that is there is never invisible
    return blocks[max(least, min(steps, round(filled - level * steps)))]
