"""The page of an audit: what the open file shows by itself. It starts at once, and escape cancels it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_tui.keys import AUDIT_KEYS, bindings
from apr_tui.render.audit import audit_lines, proof_note
from apr_tui.render.status import error_note
from apr_tui.screens.page import PageScreen
from apr_tui.style import Rows, escape_untrusted, wrap
from apr_tui.workers.jobs import audit_job
from apr_tui.workers.run import Frame
from core.system.errors import Cancelled

if TYPE_CHECKING:
    from core.audit.audit_file import Audit


class AuditScreen(PageScreen):
    """One audit over the trace."""

    BINDINGS = bindings(AUDIT_KEYS)
    kind = AUDIT_KEYS

    def __init__(self, path: Path) -> None:
        super().__init__(f"{escape_untrusted(path.name)}  audit: the file by itself", self._lines)
        self.path = path
        self.audit: Audit | None = None
        self.note: tuple[str, str] | None = None

    def on_mount(self) -> None:
        """Start."""
        self.console.run_job(self, "audit", audit_job(self.path, self.console.get_session))

    def _lines(self, width: int) -> Rows:
        return audit_lines(self.audit, width) if self.audit is not None else []

    def show_lines(self) -> None:
        """Draw what runs, or how it ended, over the hints."""
        super().show_lines()
        seconds = self.console.busy_seconds()
        is_busy = self.console.owner is self
        text, name = (f"reading every weight ... {seconds or 0.0:.1f} s", "a") if is_busy else self.note or ("", "text")
        notes: Rows = [[(f" {part}", name)] for part in wrap(text, self.app.size.width - 2)[:2]] if text else []
        self.foot.show([*notes, *self.foot.lines[-1:]])

    # what the console asks of a screen that runs a job

    def show_frame(self, frame: Frame) -> None:
        """An audit measures no cell."""
        self.show_lines()

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the audit, or why there is none."""
        if error is not None:
            self.note = ("cancelled: nothing was found out", "watch") if isinstance(error, Cancelled) else (
                error_note(error))
        else:
            self.audit, self.note = result, proof_note(result)
        self.page.on_resize()
        self.show_lines()

    def say(self, text: str, name: str = "text") -> None:
        """Put a message over the hints."""
        self.note = (text, name)
        self.show_lines()

    def command(self) -> str:
        """The command that gives this page without a screen."""
        return shlex.join(["apr-tui", "audit", str(self.path)])

    def action_back(self) -> None:
        """Cancel what runs; else leave."""
        if self.console.owner is self and self.console.cancel_job():
            self.say("cancelling ...", "watch")
        else:
            self.dismiss()
