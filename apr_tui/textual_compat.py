"""All that the console takes of Textual beyond its public names (8.2.8). A test finds whoever else reaches for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.app import App
from textual.color import Color
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Resize
from textual.filter import LineFilter
from textual.message import Message

from apr_tui.shutdown import restorer
from apr_tui.wire import Wire
from core.system.safe_text import is_steering, safe_text


class Unsteered(LineFilter):
    """Take out of a line what could steer a terminal. A screen escapes what it shows; this is for what one forgot."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Keep the width: what takes no cell goes, what takes some becomes as many question marks."""
        return [segment if segment.text.isprintable() or segment.control else
                Segment("".join("?" * cell_len(c) if is_steering(c) else c for c in segment.text), segment.style)
                for segment in segments]


UNSTEERED = Unsteered()


def has_mouse() -> bool:
    """Whether the mouse is on at first: not over SSH, where each click costs a way there and back."""
    return not any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))


FLUSH_S = 0.012  # what comes within this time goes out as one
HOLD_S = 0.3     # and what comes until a new screen is drawn, but no longer than this


class WireDriver(LinuxDriver):
    """Textual's driver, writing only what changes on the terminal."""

    wire: Wire
    _due: asyncio.TimerHandle | None = None
    _is_held = False

    def write(self, data: str) -> None:
        """Take a write: its picture goes out a little later, with what else the frame brings."""
        passed = self.wire.take(data)
        if passed:
            super().write(passed)
        if self.wire.waits and self._due is None:
            self._due = self._loop.call_later(HOLD_S if self._is_held else FLUSH_S, self._write_changes)

    def hold(self, is_held: bool) -> None:
        """Write nothing until a new screen is drawn: Textual shows it empty first."""
        self._is_held = is_held
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self.write("")

    def toggle_mouse(self) -> bool:
        """Turn the mouse on or off; say whether it is on now."""
        if self._mouse:
            self._disable_mouse_support()
        self._mouse = not self._mouse
        if self._mouse:
            self._enable_mouse_support()
        return self._mouse

    def _enable_mouse_support(self) -> None:
        """Ask for presses and the wheel, not for every move: those would come over the line for nothing."""
        if self._mouse:
            self.write("\x1b[?1000h\x1b[?1006h")

    def start_application_mode(self) -> None:
        """Begin, or go on after a stop: nothing is known of the terminal."""
        self.wire = Wire()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def process_message(self, message: Message) -> None:
        """A terminal of another size shows what it likes."""
        if isinstance(message, Resize):
            self.wire.forget()
        super().process_message(message)

    def stop_application_mode(self) -> None:
        """End: what waits is not shown any more."""
        self.wire.forget()
        super().stop_application_mode()

    def _write_changes(self) -> None:
        self._due, self._is_held = None, False
        changes = self.wire.flush()
        if changes and self._writer_thread is not None:
            super().write(changes)


class CompatApp(App[int]):
    """An App that closes at an internal error without a word, for its caller to report, and knows its terminal."""

    def fail(self, error: Exception) -> None:
        """Close because of an internal error."""
        self._handle_exception(error)

    @property
    def failure(self) -> Exception | None:
        """The internal error that closed it."""
        return self._exception

    def toggle_mouse(self) -> bool:
        """Turn the mouse on or off; say whether it is on now."""
        driver = self._driver
        return driver.toggle_mouse() if isinstance(driver, WireDriver) else False

    def redraw(self) -> None:
        """Write the whole screen again: another program may have written over it."""
        if isinstance(self._driver, WireDriver):
            self._driver.wire.forget()
        self.screen.refresh(layout=True)

    def hold(self, is_held: bool) -> None:
        """Write nothing until a new screen is drawn, or go on."""
        if isinstance(self._driver, WireDriver):
            self._driver.hold(is_held)

    @property
    def backlog(self) -> int:
        """Writes that wait for the terminal to take them; 0 where nobody counts them."""
        queue = getattr(getattr(self._driver, "_writer_thread", None), "_queue", None)
        return 0 if queue is None else int(queue.qsize())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The last filter of every line is the one exit for text: what steers a terminal is not in it any more."""
        return [*super().get_line_filters(), UNSTEERED]

    def copy_to_clipboard(self, text: str) -> None:
        """Copy what can be pasted into a shell: printable characters alone."""
        super().copy_to_clipboard(safe_text(text))

    def terminal_restorer(self) -> Callable[[], None]:
        """Return what gives the terminal back the modes that the driver found."""
        return restorer(getattr(self._driver, "fileno", None), getattr(self._driver, "attrs_before", None))

    def _fatal_error(self) -> None:
        """Close without Textual's traceback."""
        self._close_messages_no_wait()

    def _print_error_renderables(self) -> None:
        """Print nothing on the way out."""
        self._exit_renderables.clear()
