"""All that the console takes of Textual beyond its public names (8.2.8). A test finds whoever else reaches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter

from apr_tui.shutdown import restorer
from core.system.safe_text import is_steering, safe_text


class Unsteered(LineFilter):
    """Take out of a line what could steer a terminal. A screen escapes what it shows; this is for what one forgot."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Keep the width: what takes no cell goes, what takes some becomes as many question marks."""
        return [segment if segment.text.isprintable() or segment.control else
                Segment("".join("?" * cell_len(c) if is_steering(c) else c for c in segment.text), segment.style)
                for segment in segments]


UNSTEERED = Unsteered()


class CompatApp(App[int]):
    """An App that closes at an internal error without a word, for its caller to report, and knows its terminal."""

    def fail(self, error: Exception) -> None:
        """Close because of an internal error."""
        self._handle_exception(error)

    @property
    def failure(self) -> Exception | None:
        """The internal error that closed it."""
        return self._exception

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
