"""Draw the overview strip: stages down, layers across, block heights; one look finds the odd layer. No numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol

from textual.strip import Strip
from textual.widget import Widget

from apr_tui.style import STATES, Rows, Span, block, changed, strip
from core.trace.finding import BAD, OK, UNKNOWN, WATCH

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

    def multiple(self, place: tuple[int | None, str]) -> float | None:
        """The number over its floor; None where it has none."""

    def tone(self, place: tuple[int, str]) -> str:
        """The style of the cell in the grid."""


class Overview(Widget):
    """The strip. Each stage has its own scale; where layers share a column, the worst shows."""

    DEFAULT_CSS = "Overview { width: 1fr; height: 1fr; }"

    def __init__(self, source: StripSource, columns: Sequence[str], id: str | None = None) -> None:
        super().__init__(id=id)
        self.source = source
        self.columns = tuple(columns)
        self.cursor = (0, "")
        self._lines: Rows = []
        self._most: float | None = None  # decades of the tallest bar above its floor; None: bars are not logarithmic

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
        decades = [n for column in self.columns for g in groups if (n := self._decades(column, g)) is not None]
        self._most = max(decades, default=None)
        lines = [self._axis(groups, wide)]
        for column in self.columns:
            lines += self._bars(column, groups, wide, tall)
        together = f", {share} layers a column" if share > 1 else ""
        scale = "each stage from 0 to its largest, or twice its median"
        if self._most is not None:
            scale = f"logarithmic: from the floor to {10 ** self._most:.2g} x floor"
        lines.append([(f"{'':{LABEL}}{scale}{together}", "rule")])
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
            elif group[0] % 5 >= len(group) or at - last <= 3 or (mark[1] and mark[0] <= at <= mark[1]):
                continue
            line[at:at + len(text)] = text
            last = at
        before, here, after = line[:mark[0]], line[mark[0]:mark[1]], line[mark[1]:]
        return [(" " * LABEL, "quiet"), ("".join(before), "quiet"), ("".join(here), "title+cursor"),
                ("".join(after), "quiet")]

    def _bars(self, column: str, groups: Sequence[range], wide: int, tall: int) -> Rows:
        cells = [self._worst(column, group) for group in groups]
        if self._most is not None:
            heights = [self._decades(column, group) for group in groups]
            cells = [(n if n is None else h, tone) for (n, tone), h in zip(cells, heights, strict=True)]
        sizes = [abs(n) for n, _ in cells if n is not None and math.isfinite(n)]
        largest = max(*sizes, 2 * sorted(sizes)[len(sizes) // 2]) if sizes else 0.0
        largest = largest if self._most is None else self._most
        lines: Rows = [[]] if tall > 1 else []
        tall = max(tall - 1, 1)
        for level in range(tall - 1, -1, -1):
            label = column if level == 0 else ""
            spans: list[Span] = [(f" {label:<{LABEL - 1}}", "title" if column == self.cursor[1] else "quiet")]
            for number, (mark, tone) in cells:
                glyph = mark if level == 0 else " "
                if number is not None:
                    share = abs(number) / largest if largest else abs(number) * 0.0  # not finite stays so
                    glyph = block(share, level, tall, shows_zero=True)
                spans.append((glyph * (wide - (wide > 2)) + " " * (wide > 2), tone))
            lines.append(spans)
        return lines

    def _decades(self, column: str, group: range) -> float | None:
        """How far the worst layer of a group stands above its floor, in factors of 10; None without a floor."""
        found = [n for layer in group if (n := self.source.multiple((layer, column))) is not None]
        return max((math.log10(n) for n in found if n > 1 and math.isfinite(n)), default=0.0) if found else None

    def _worst(self, column: str, group: range) -> tuple[float | None, tuple[str, str]]:
        """The largest number of a group of layers; the worst mark with its style."""
        places = [(layer, column) for layer in group]
        marks = [self.source.mark(place) for place in places]
        mark = next((m for m in WORST if m in marks), marks[0])
        tones = [self.source.tone(place).partition("@")[0] for place, m in zip(places, marks, strict=True) if m == mark]
        tone = next((t for t in tones if t == STATES[mark][1]), tones[0])  # the first one is brighter than the others
        numbers = [n for place in places if (n := self.source.number(place)) is not None]
        number = max(numbers, key=lambda n: math.inf if math.isnan(n) else abs(n), default=None)
        is_plain = mark == OK or (mark == UNKNOWN and number is not None)
        return number, (mark, "bar" if is_plain else tone)
