"""Lines of spans as a widget that repaints what changed."""

from __future__ import annotations

from collections.abc import Sequence

from textual.strip import Strip
from textual.widget import Widget

from apr_tui.style import Span, changed, strip


class Lines(Widget):
    """Lines of spans drawn as they are; a change repaints only what changed."""

    def __init__(self, id: str | None = None, rows: int = 0) -> None:
        super().__init__(id=id)
        self.lines: list[Sequence[Span]] = [()] * rows
        self.styles.height = rows

    def show(self, lines: Sequence[Sequence[Span]]) -> None:
        """Show these lines."""
        old, self.lines = self.lines, list(lines)
        if len(old) != len(self.lines):
            self.styles.height = len(self.lines)
            self.refresh(layout=True)
            return
        for y, (before, after) in enumerate(zip(old, self.lines, strict=True)):
            region = changed(before, after, y, self.size.width)
            if region is not None:
                self.refresh(region)

    def render_line(self, y: int) -> Strip:
        """Draw one line (Textual calls this)."""
        return strip(self.lines[y] if y < len(self.lines) else (), self.size.width)
