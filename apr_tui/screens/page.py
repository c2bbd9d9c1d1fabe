"""Show lines that may outgrow the screen: help, everything about a stage, the reasons of a verdict. Reading only."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import Screen

from apr_tui.keys import PAGE, bindings, hint_spans
from apr_tui.style import Span, foreign
from apr_tui.widgets.lines import Lines
from apr_tui.widgets.page import Build, Page


class PageScreen(Screen[None]):
    """A title over a page."""

    BINDINGS = bindings(PAGE)
    kind = PAGE

    def __init__(self, title: str, build: Build, planted: str | None = None) -> None:
        super().__init__()
        self.heading: list[Span] = [(f" PLANTED {foreign(planted)} ", "planted")] if planted else []
        self.heading.append((f" {title}", "title"))
        self.head, self.page, self.foot = Lines("title", 1), Page(build), Lines("foot", 1)

    def compose(self) -> ComposeResult:
        """Title, page, hints."""
        yield from (self.head, self.page, self.foot)

    def on_resize(self) -> None:
        """Show the title and the hints."""
        self.head.show([self.heading])
        self.call_after_refresh(self.show_lines)

    def show_lines(self) -> None:
        """Show the keys, and how much stands below."""
        hints = hint_spans(self.kind, self.app.size.width)
        below = len(self.page.lines) - self.page.top - self.page.size.height
        self.foot.show([[*hints, (f"  down: {below} more line{'s' * (below > 1)}" if below > 0 else "", "quiet")]])

    def scroll_by(self, rows: int) -> None:
        """Scroll, as far as there are lines."""
        self.page.scroll_by(rows)
        self.show_lines()

    def action_move(self, rows: int, columns: int) -> None:
        """Scroll a line."""
        self.scroll_by(rows)

    def action_page(self, direction: int) -> None:
        """Scroll a page."""
        self.scroll_by(direction * max(self.page.size.height - 1, 1))

    def action_end(self, direction: int) -> None:
        """To the first or the last line."""
        self.scroll_by(direction * 1_000_000)

    def action_back(self) -> None:
        """Leave."""
        self.dismiss()

    def action_quit(self) -> None:
        """Leave the console."""
        self.app.exit(0)
