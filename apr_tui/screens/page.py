"""What all screens do (help, copy, back, quit), and the screen of a page that may outgrow it. It knows no numbers."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

from textual import events
from textual.app import ComposeResult
from textual.screen import Screen

from apr_tui.keys import PAGE_KEYS, bindings, commands_of, hint_spans
from apr_tui.render.help import help_build
from apr_tui.render.title import planted_spans
from apr_tui.style import Span, escape_untrusted
from apr_tui.widgets.lines import Lines
from apr_tui.widgets.page import Build, Page

if TYPE_CHECKING:
    from apr_tui.host import Host


class BaseScreen(Screen[None]):
    """A screen of the console. A child names its keys, and what to copy where it has that key."""

    kind = ""  # of keys.KEYS

    @property
    def console(self) -> Host:
        """The app, as far as a screen may know it."""
        return cast("Host", self.app)

    def on_mount(self) -> None:
        """Hold back what Textual shows before the screen is drawn (it calls this and the children's own)."""
        self.console.hold(True)

    def on_resize(self, event: events.Resize) -> None:
        """Go on once the child has drawn itself."""
        self.call_after_refresh(self.call_after_refresh, self.console.hold, False)

    def say(self, text: str, name: str = "text") -> None:
        """Show a message until the next one."""
        raise NotImplementedError

    def command(self) -> str:
        """The command that gives without a screen what is shown."""
        raise NotImplementedError

    def action_help(self) -> None:
        """The help page."""
        self.app.push_screen(PageScreen("Help", lambda width: help_build(self.kind, width)))

    def action_palette(self) -> None:
        """Ask what to do, by its words."""
        known = commands_of(self.kind)

        def matches(typed: str) -> list[str]:
            words = typed.casefold().split()
            return [text for text in known if all(word in text.casefold() for word in words)]

        def refuse(text: str) -> str:
            near = get_close_matches(text.casefold(), re.findall(r"\w+", " ".join(known)), 1)
            return "" if text in known else f"Nothing here is called that.{f' Did you mean {near[0]}?' if near else ''}"

        self.console.ask("do", "", "words of what to do; up and down choose", lambda text: self.do(known[text]),
                         completes=matches, refuse=refuse, listed=list(known))

    def do(self, action: str) -> None:
        """Take an action of the key table."""
        self.call_later(self.run_action, action)

    def action_mouse(self) -> None:
        """Turn the mouse on or off."""
        is_on = self.console.toggle_mouse()
        self.say("mouse on: wheel and click; M turns it off" if is_on else "mouse off", "quiet")

    def action_redraw(self) -> None:
        """Draw the screen anew, whatever another program wrote over it."""
        self.console.redraw()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves as the keys do."""
        self.action_move(1, 0)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves as the keys do."""
        self.action_move(-1, 0)

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor, or the page."""
        raise NotImplementedError

    def action_copy(self) -> None:
        """Copy the command."""
        self.app.copy_to_clipboard(self.command())
        self.say(f"copied: {escape_untrusted(self.command())}")

    def action_back(self) -> None:
        """Leave the screen."""
        self.dismiss()

    def action_quit(self) -> None:
        """Leave the page; of the first one the console, with exit code 0, and a training run of its own ends."""
        if self.console.is_first(self):
            self.console.leave(0)
        else:
            self.console.abandon(self)
            self.dismiss()


class PageScreen(BaseScreen):
    """A title over a page."""

    BINDINGS = bindings(PAGE_KEYS)
    kind = PAGE_KEYS

    def __init__(self, title: str, build: Build, planted: str | None = None) -> None:
        super().__init__()
        self.heading: list[Span] = [*planted_spans(planted), (f" {title}", "title")]
        self.head, self.page, self.foot = Lines("title", 1), Page(build), Lines("foot", 1)

    def compose(self) -> ComposeResult:
        """Title, page, hints."""
        yield from (self.head, self.page, self.foot)

    def on_resize(self, event: events.Resize) -> None:
        """Show the title and the hints."""
        self.head.show([self.heading])
        self.call_after_refresh(self.show_lines)

    def show_lines(self) -> None:
        """Show the keys, and how much stands below."""
        hints = hint_spans(self.kind, self.app.size.width)
        below = len(self.page.lines) - self.page.top - self.page.size.height
        self.foot.show([[*hints, (f"  down: {below} more line{'s' * (below > 1)}" if below > 0 else "", "quiet")]])

    def say(self, text: str, name: str = "text") -> None:
        """Show a message in the title."""
        self.head.show([[*self.heading, (f"  {text}", name)]])

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
