"""A page of lines that scrolls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.strip import Strip
from textual.widget import Widget

from apr_tui.style import Span, strip

Build = Callable[[int], Sequence[Sequence[Span]]]  # width -> lines


class Page(Widget):
    """The lines in view."""

    DEFAULT_CSS = "Page { height: 1fr; width: 1fr; }"

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.build = build
        self.lines: Sequence[Sequence[Span]] = ()
        self.top = 0

    def on_resize(self) -> None:
        """Break the lines again."""
        self.lines = self.build(self.size.width)
        self.scroll_by(0)

    def scroll_by(self, rows: int) -> None:
        """Scroll by rows, as far as there are lines."""
        self.top = max(min(self.top + rows, len(self.lines) - self.size.height), 0)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line (Textual calls this)."""
        return strip(self.lines[self.top + y] if self.top + y < len(self.lines) else (), self.size.width)
