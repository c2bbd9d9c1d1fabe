"""Run the console from the first paint to the exit code: its theme and mouse, and whatever way it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apr_tui import shutdown as leaving
from apr_tui.app import Console
from apr_tui.config import read_config
from apr_tui.ground import theme_of
from apr_tui.textual_compat import has_mouse
from core.system.errors import OutputError, os_reason

if TYPE_CHECKING:
    from apr_tui.request import Request
    from apr_tui.workers.train import Training


def run_console(request: Request, session: Any = None, training: Training | None = None) -> int:  # noqa: ANN401
    """Run the console until it is left and return the exit code. The caller has made sure of a terminal.

    Errors: an internal error is raised again once the screen is closed; the caller writes its log.
    """
    app = Console(replace(request, theme=theme_of(request.theme)), session, training)
    code: int | None = None
    error: BaseException | None = None
    try:
        settled = read_config().mouse
        code = app.run(mouse=has_mouse() if settled is None else settled)
    except (KeyboardInterrupt, OSError) as found:
        if isinstance(found, OSError) and leaving.has_terminal():
            error = OutputError(f"the terminal failed: {os_reason(found)}.")
        code = leaving.SIGNAL_EXIT  # else the line dropped while the terminal was being restored
    if code is None and app.failure is None:  # reading keys failed
        error = error or (RuntimeError("the terminal's input failed") if leaving.has_terminal() else None)
        code = leaving.SIGNAL_EXIT
    ended = app.worker.leave() & app.exports.worker.leave()
    if app.training is not None:
        ended &= app.training.shut_down()
    error = error or app.failure
    if error is not None:
        raise error
    assert code is not None
    if not ended:  # a thread inside a long kernel, or loading torch, cannot be stopped: nothing of it is half written
        leaving.end_now(code)
    return code
