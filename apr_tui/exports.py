"""Write evidence to a folder beside whatever runs: ask where, ask again before it overwrites, say how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from apr_tui.request import Request, typed_path
from apr_tui.screens.dialogs import ConfirmScreen, completions
from apr_tui.style import escape_untrusted
from apr_tui.workers.jobs import export_job
from apr_tui.workers.run import JobFinished, RunWorker
from core.system.errors import AprError

if TYPE_CHECKING:
    from apr_tui.host import Host, JobOwner
    from apr_tui.textual_compat import CompatApp


class Exports:
    """The console's exports, one at a time, in a thread of their own."""

    def __init__(self, app: CompatApp) -> None:
        self.app, self.host = app, cast("Host", app)
        self.worker = RunWorker(app)
        self.writing: JobOwner | None = None  # the screen whose export runs

    def ask(self, screen: JobOwner, request: Request, shown: Any, out: Path) -> None:  # noqa: ANN401 (Trace, Check ...)
        """Ask for the folder and write; request: the screen's scope and threshold."""
        def answered(folder: Path) -> Callable[[bool | None], None]:
            return lambda yes: write(folder, True) if yes else screen.say("nothing was written", "watch")

        def write(folder: Path, force: bool) -> None:
            self.writing = screen
            job = export_job(shown, folder, force, request, screen.command(), self.host.get_session)
            self.worker.start("export", job)
            screen.say(f"writing {escape_untrusted(str(folder))} ...", "a")

        def named(text: str) -> None:
            folder = typed_path(text.strip())
            if not text.strip():
                return
            if os.path.exists(folder):
                self.app.push_screen(ConfirmScreen(f"{folder} exists. Overwrite it?", "overwrite"), answered(folder))
            else:
                write(folder, False)

        if self.writing is not None:
            screen.say("An export is being written: wait for its end.", "watch")
        else:
            self.host.ask("export to", str(out), "a folder; it is whole or not there at all", named,
                          completes=completions)

    def finished(self, message: JobFinished) -> None:
        """Give the end to its screen; an internal error closes the console."""
        if message.error is not None and not isinstance(message.error, AprError):
            self.app.fail(message.error)
        elif message.serial == self.worker.serial and self.writing is not None:
            writing, self.writing = self.writing, None
            writing.job_finished(message.kind, message.result, message.error)
