"""All that the console takes of Textual beyond its public names (8.2.8). A test finds whoever else reaches for them."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import App

from apr_tui.shutdown import restorer


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

    def terminal_restorer(self) -> Callable[[], None]:
        """Return what gives the terminal back the modes that the driver found."""
        return restorer(getattr(self._driver, "fileno", None), getattr(self._driver, "attrs_before", None))

    def _fatal_error(self) -> None:
        """Close without Textual's traceback."""
        self._close_messages_no_wait()

    def _print_error_renderables(self) -> None:
        """Print nothing on the way out."""
        self._exit_renderables.clear()
