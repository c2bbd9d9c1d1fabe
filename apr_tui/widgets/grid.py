"""Draw rows x named columns of numbers with a cursor, by the line API. It knows no model: a view gives it each cell.

A change repaints the cells that changed and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from apr_tui.style import Span, changed, strip, to_terminal_charset
from core.trace.finding import OK

LABEL = 5    # columns of the row's label
CELL = 7     # columns of a cell, its mark included
HEADER = 2   # lines of the header
ZERO = "·"   # of a number that is exactly 0


class GridSource(Protocol):
    """What is drawn: the number of rows, and each cell as a shortened number and a mark of paint.STATES."""

    @property
    def n_row(self) -> int:
        """Number of rows."""

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text (at most 6 columns) and mark."""

    def tone(self, place: tuple[int, str]) -> str:
        """The style of a cell."""


class GridView(Widget):
    """The grid: rows down, columns across, a cursor; follows the running row until the cursor is moved."""

    DEFAULT_CSS = "GridView { width: 1fr; height: 1fr; }"

    class Moved(Message):
        """The cursor stands elsewhere."""

    def __init__(self, source: GridSource, columns: Sequence[str], id: str | None = None) -> None:
        super().__init__(id=id)
        self.name_shown: Span = ("", "quiet")  # over the labels: which of two sides it is
        self.source = source
        self.columns = tuple(columns)
        self.row, self.column = 0, 0
        self.is_following = True
        self._top, self._left = 0, 0
        self._drawn: dict[int, list[Span]] = {}  # by line of the widget: what stands on the screen

    @property
    def place(self) -> tuple[int, str]:
        """Row and column's name under the cursor."""
        return self.row, self.columns[self.column]

    @property
    def shown_rows(self) -> range:
        """Rows in view."""
        return range(self._top, min(self._top + self._rows(), self.source.n_row))

    def move(self, rows: int, columns: int) -> None:
        """Move the cursor by hand: following ends."""
        self.go(self.row + rows, self.column + columns)

    def go(self, row: int, column: int | None = None) -> None:
        """Put the cursor at a cell, as near as the grid has it: following ends."""
        self.is_following = False
        self._place(row, self.column if column is None else column)

    def follow(self, row: int, column: str) -> None:
        """Take the cursor along with the run, as long as nobody has moved it."""
        if self.is_following and column in self.columns:
            self._place(row, self.columns.index(column))

    def page(self, direction: int) -> None:
        """Move by the rows in view, less one."""
        self.move(direction * max(self._rows() - 1, 1), 0)

    def show_rows(self, rows: Iterable[int]) -> None:
        """Repaint those of these rows that changed."""
        seen = self.shown_rows
        self._repaint(HEADER + row - self._top for row in rows if row in seen)

    def show_all(self) -> None:
        """Repaint what changed: another run, scope or metric."""
        self._place(self.row, self.column)
        self._repaint(range(self.size.height))

    def show_like(self, grid: GridView) -> None:
        """Show the rows that another grid shows, the cursor at the same cell."""
        self.row, self.column, self._top, self._left = grid.row, grid.column, grid._top, grid._left
        self._repaint(range(self.size.height))

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._place(self.row, self.column)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where it is clicked."""
        column = self._left + (event.x - LABEL) // CELL
        if event.y >= HEADER and event.x >= LABEL and column < len(self.columns):
            self.go(self._top + event.y - HEADER, column)

    def render_line(self, y: int) -> Strip:
        """Draw one line (Textual calls this)."""
        self._drawn[y] = self._spans(y)
        return strip(self._drawn[y], self.size.width)

    def header(self, y: int) -> list[Span]:
        """One line of the header: names broken at the underscore, right-aligned over the numbers."""
        name, tone = self.name_shown
        spans: list[Span] = [("layer", "quiet") if y == 1 else (f"{name:<{LABEL}}", tone)]
        for column in self._columns():
            head, _, tail = column.rpartition("_")
            word = tail if y == 1 else f"{head}_" if head else ""
            here = self.columns[self.column] == column
            spans.append((f"{word[:CELL - 1]:>{CELL - 1}} ", "title" if here else "quiet"))
        return spans

    def line(self, row: int) -> list[Span]:
        """One row as spans: label, then each cell with its mark."""
        if row >= self.source.n_row:
            return []
        spans: list[Span] = [(f"{row:>{LABEL - 1}} ", "title" if row == self.row else "quiet")]
        for column in self._columns():
            text, mark = self.source.cell(row, column)
            glyph = " " if mark == OK or text == mark else mark
            text = to_terminal_charset(ZERO) if text == "0" and mark == OK else text
            name = self.source.tone((row, column))
            spans.append((glyph + text.rjust(CELL - 1), f"{name}+cursor" if (row, column) == self.place else name))
        if len(self._columns()) < len(self.columns):
            more = len(self.columns) - self._left - len(self._columns())
            spans.append((f" +{more}" if more else "", "quiet"))
        return spans

    def _spans(self, y: int) -> list[Span]:
        return self.header(y) if y < HEADER else self.line(self._top + y - HEADER)

    def _repaint(self, lines: Iterable[int]) -> None:
        for y in lines:
            region = changed(self._drawn.get(y, ()), self._spans(y), y, self.size.width)
            if region is not None:
                self.refresh(region)

    def _rows(self) -> int:
        return max(self.size.height - HEADER, 1)

    def _columns(self) -> tuple[str, ...]:
        fitting = max((self.size.width - LABEL) // CELL, 1)
        return self.columns[self._left:self._left + fitting]

    def _place(self, row: int, column: int) -> None:
        before, top, left = (self.row, self.column), self._top, self._left
        self.row = min(max(row, 0), max(self.source.n_row - 1, 0))
        self.column = min(max(column, 0), len(self.columns) - 1)
        self._scroll()
        if (self._top, self._left) != (top, left):
            self._repaint(range(self.size.height))
        elif before != (self.row, self.column):
            self._repaint(range(HEADER if before[1] != self.column else 0))
            self.show_rows({before[0], self.row})
        if before != (self.row, self.column):
            self.post_message(self.Moved())

    def _scroll(self) -> None:
        rows, fitting = self._rows(), max((self.size.width - LABEL) // CELL, 1)
        if not self._top - 1 <= self.row <= self._top + rows:  # a jump: show what stands around
            self._top = self.row - rows // 2
        elif self.row >= self._top + rows:  # while it follows, half a page at once: a scroll repaints the whole grid
            self._top = self.row - (rows // 2 if self.is_following else rows - 1)
        self._top = max(min(self._top, self.row, self.source.n_row - rows), 0)
        self._left = max(min(self._left, self.column, len(self.columns) - fitting), self.column - fitting + 1, 0)
