"""What leads on from a trace: comparison, check, audit, bill of damage, export, training. It shows nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apr_tui.screens.grid import GridScreen
from apr_tui.screens.opening import ask_pair
from apr_tui.style import escape_untrusted
from core.system.safe_text import join_words

if TYPE_CHECKING:
    from apr_tui.request import Request
    from apr_tui.workers.jobs import Traced


class LeadingScreen(GridScreen):
    """A grid of one request, with the keys that lead on from it."""

    request: Request
    traced: Traced | None  # the finished trace

    def action_pair(self) -> None:
        """Compare with the sibling, or with a file that is asked for."""
        path = self._open_path()
        is_file = path is not None and path == (self.traced.path if self.traced else self.request.path)
        other = self.console.get_session().sibling(path) if path is not None and is_file else None
        if path is not None and other is not None:
            self.console.show_pair(self.request, path, other)
        else:
            self.action_pair_with()

    def action_pair_with(self) -> None:
        """Compare with a file that is asked for."""
        path = self._open_path()
        if path is None:
            self.say("There is nothing to compare yet: wait for the trace, or open a file with f.", "watch")
        else:
            ask_pair(self.console, self.request, path)

    def _open_path(self) -> Path | None:
        return (self.traced.path or self.traced.bundle) if self.traced else self.request.bundle or self.request.path

    def action_check(self) -> None:
        """Check the open file against float64; a bundle needs the file of its weights, which the command line takes."""
        bundle = self.traced.bundle if self.traced else self.request.bundle
        if bundle is not None:
            command = join_words(["apr-tui", "check", str(bundle), "--model"])
            self.say(f"A bundle is checked against its model's weights: {escape_untrusted(command)} FILE", "watch")
        elif self.request.path is None:
            self.say("There is nothing to check yet: wait for the trace, or open a file with f.", "watch")
        else:
            self.console.show_check(self.request, self.request.path, self.traced.model if self.traced else None)

    def action_damage(self) -> None:
        """Bill the open file's tensors with what their rounding costs."""
        if self.request.path is None:
            self.say("There is no model file to bill: open one with f.", "watch")
        else:
            self.console.show_damage(self.request, self.request.path)

    def action_audit(self) -> None:
        """Audit the open file by itself."""
        if self.request.path is None:
            self.say("There is no model file to audit: open one with f.", "watch")
        else:
            self.console.show_audit(self.request.path)

    def action_export(self) -> None:
        """Write the evidence."""
        if self.traced is None:
            self.say("There is nothing to export yet: the trace has to end first.", "watch")
            return
        out = self.console.get_session().default_out(self.traced.trace)
        self.console.exports.ask(self, self.request.with_scope(self.view.scope), self.traced.trace, out)

    def action_train(self) -> None:
        """Show the training run, or ask for one."""
        self.console.show_training(self.say, self.request.settings.device)
