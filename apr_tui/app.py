"""The console: one App that owns the worker and the screens, and the ways it ends. What is shown is the screens'."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.screen import Screen

from apr_tui import shutdown as leaving
from apr_tui.exports import Exports
from apr_tui.host import JobOwner
from apr_tui.palette import DARK, PALETTES
from apr_tui.render.status import memory_text
from apr_tui.request import Request
from apr_tui.screens.audit import AuditScreen
from apr_tui.screens.check import CheckScreen
from apr_tui.screens.check_layer import CheckLayerScreen
from apr_tui.screens.compare import CompareScreen
from apr_tui.screens.compare_layer import CompareLayerScreen
from apr_tui.screens.dialogs import AskScreen, Completes, Refuse
from apr_tui.screens.ladder import LadderScreen
from apr_tui.screens.trace import TraceScreen
from apr_tui.screens.trace_layer import TraceLayerScreen
from apr_tui.session import GetSession, get_session
from apr_tui.style import paint, textual_theme
from apr_tui.textual_compat import CompatApp, WireDriver
from apr_tui.workers.run import JobFinished, JobProgress, Progress, RunWorker
from core.system.atomic_folder import SIDES
from core.system.errors import AprError, Cancelled
from core.system.mapped_file import cut_error

if TYPE_CHECKING:
    from apr_tui.workers.train import Training
    from core.bundle.judged import Judged
    from core.damage.result import Damage
    from core.formats.model_file import ModelFile
    from core.proof.verdict import Bisection

TICK_S = 0.25
MEMORY_S = 1.0
MAX_BACKLOG = 2  # writes that wait for the line; more, and frames are dropped


class Console(CompatApp):
    """The console of one user at one terminal."""

    TITLE = "apr-tui"
    CSS_PATH = "console.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "interrupt", show=False, priority=True)]

    def __init__(
        self, request: Request, session: Any = None, training: Training | None = None,  # noqa: ANN401 (a SessionApi; None: core.session)
    ) -> None:
        super().__init__(driver_class=WireDriver, ansi_color=True if os.environ.get("NO_COLOR") else None)
        self.request = request
        self.get_session: GetSession = get_session if session is None else lambda: session
        self.worker = RunWorker(self)
        self.exports = Exports(self)
        self.training = training  # shown first, where it is given
        self.base: TraceScreen  # under all the others, from on_mount on
        self.owner: JobOwner | None = None  # the screen whose job runs
        self.run_seconds: float | None = None
        self._job_started: float | None = None
        self._leave_soon: Callable[[], object] | None = None  # from a signal handler
        self._cut_soon: Callable[[], object] | None = None
        self._memory_read, self._memory = 0.0, ""
        self.animation_level = "none"
        palette = PALETTES[DARK.name if request.theme == "auto" else request.theme]
        paint(palette)
        self.register_theme(textual_theme(palette))
        self.theme = f"apr-{palette.name}"

    def on_mount(self) -> None:
        """Show the main screen, then start: the first paint waits for nothing."""
        if self.is_headless is False:
            loop, context = asyncio.get_running_loop(), contextvars.copy_context()
            self._leave_soon = lambda: loop.is_closed() or loop.call_soon_threadsafe(
                self.leave, leaving.SIGNAL_EXIT, context=context)
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            self._cut_soon = lambda: loop.is_closed() or loop.call_soon_threadsafe(
                self.fail, cut_error(), context=context)
            leaving.on_cut_files(self._on_cut)
        self.base = TraceScreen(self.request)
        self.push_screen(self.base)
        self.set_interval(TICK_S, self._tick)
        if self.training is not None:
            self.training.start()
            self.base.action_train()
        else:
            self.base.call_after_refresh(self.base.start)

    # jobs

    def run_job(self, owner: JobOwner, kind: str, job: Callable[[JobProgress], Any]) -> None:
        """Run a job for a screen; what ran before is cancelled, and its screen notified."""
        if self.owner is not None and self.owner is not owner:
            self.owner.job_finished(self.worker.kind, None, Cancelled("another run began"))
        self.owner, self._job_started = owner, time.monotonic()
        self.worker.start(kind, job)

    def cancel_job(self) -> bool:
        """Ask the running job to end; False where none runs."""
        return self.owner is not None and self.worker.cancel()

    @property
    def job(self) -> str:
        """The kind of the job that runs; empty where none does."""
        return "" if self.owner is None else self.worker.kind

    @property
    def has_run(self) -> bool:
        """Whether a job was ever started."""
        return bool(self.worker.serial)

    def busy_seconds(self) -> float | None:
        """How long the running job has run; None where none runs."""
        return None if self.owner is None or self._job_started is None else time.monotonic() - self._job_started

    def memory(self) -> str:
        """This process's memory, read once a second: each change repaints the title."""
        if time.monotonic() - self._memory_read > MEMORY_S:
            self._memory_read, self._memory = time.monotonic(), memory_text()
        return self._memory

    def on_progress(self, message: Progress) -> None:
        """Give a newer frame to the screen that asked for it; dropped while the line is behind."""
        if message.frame.kind == "export" or message.frame.serial != self.worker.serial:
            return
        if self.owner is None or not self.screen_stack:
            return
        if self.is_behind():
            progress = self.worker.progress
            if progress is not None:
                progress.again()
            return
        self.owner.show_frame(message.frame)
        self._show_top()

    def on_job_finished(self, message: JobFinished) -> None:
        """Give the end of a job to its screen; an internal error closes the console."""
        if not self.screen_stack:  # it is closing
            return
        if message.kind == "export":
            self.exports.finished(message)
            return
        if message.serial != self.worker.serial or self.owner is None:
            return
        owner, self.owner = self.owner, None
        self.run_seconds = time.monotonic() - (self._job_started or time.monotonic())
        if message.error is not None and not isinstance(message.error, AprError):
            self.fail(message.error)
            return
        owner.job_finished(message.kind, message.result, message.error)
        self._show_top()

    def _tick(self) -> None:
        """Show what no frame has shown yet, and the time; nothing while the line is behind."""
        if self.owner is None or self.is_behind():
            return
        progress = self.worker.progress
        frame = progress.frame() if progress is not None else None
        if frame is not None and frame.serial == self.worker.serial:
            self.owner.show_frame(frame)
            self._show_top()
        else:
            self.owner.show_lines()

    def _show_top(self) -> None:
        """A layer that stands open over the grid grows with it."""
        refresh = getattr(self.screen, "show_all", None)
        if cast(object, self.screen) is not self.owner and refresh is not None:
            refresh()

    def is_behind(self) -> bool:
        """Say whether the terminal has not taken the last writes yet."""
        return self.backlog > MAX_BACKLOG

    # questions

    def ask(
        self, label: str, value: str, hint: str, answer: Callable[[str], None], *,
        completes: Completes | None = None, refuse: Refuse | None = None, listed: Sequence[str] = (),
    ) -> None:
        """Ask for a line at the bottom; answer is called unless it is left with escape. refuse: why not to take it."""
        def answered(text: str | None) -> None:
            if text is not None:
                answer(text)

        self.push_screen(AskScreen(label, value, hint, completes=completes, refuse=refuse, listed=listed), answered)

    def is_first(self, screen: Screen[None]) -> bool:
        """Whether nothing lies under it: the trace, or what was opened instead of one (a training run, a bill)."""
        is_alone = self.base.traced is None and self.base.asked_nothing
        return screen is self.base or (is_alone and screen is self.screen_stack[2])

    def abandon(self, screen: object) -> None:
        """Cancel a screen's job and forget the screen: it is left."""
        if self.owner is screen:
            self.worker.cancel()
            self.owner = None

    def show_pair(self, request: Request, a: Path, b: Path) -> None:
        """Open the comparison of b with a."""
        self.push_screen(CompareScreen(request, a, b))

    def show_check(self, request: Request, path: Path, model: ModelFile | None) -> None:
        """Open the check of a model file against float64."""
        self.push_screen(CheckScreen(request, path, model))

    def show_judged(self, request: Request, judged: Judged, folder: Path) -> None:
        """Open a verdict as it was found."""
        from core.proof.check_result import Check  # it loads numpy

        if isinstance(judged, Check):
            self.push_screen(CheckScreen(request, folder, None, judged))
        else:
            self.push_screen(CompareScreen(request, folder / SIDES[0], folder / SIDES[1], judged))

    def show_damage(self, request: Request, path: Path, saved: Damage | None = None) -> None:
        """Open the bill of damage of a file, or a saved one."""
        from apr_tui.screens.damage import DamageScreen  # it loads numpy

        self.push_screen(DamageScreen(request, path, saved))

    def show_audit(self, path: Path) -> None:
        """Open the audit of a model file by itself."""
        self.push_screen(AuditScreen(path))

    def show_layer(self, under: Screen[None], has_detail: bool = False) -> None:
        """Open the layer under the cursor of a trace, a comparison or a check."""
        layers = {TraceScreen: TraceLayerScreen, CompareScreen: CompareLayerScreen, CheckScreen: CheckLayerScreen}
        self.push_screen(layers[type(under)](under, has_detail))

    def show_ladder(self, under: Screen[None], found: Bisection) -> None:
        """Open the ladder of grafts over its comparison."""
        assert isinstance(under, CompareScreen)
        self.push_screen(LadderScreen(under, found))

    def show_training(self, say: Callable[[str, str], None], device: str) -> None:
        """Show this console's training run, or ask for one."""
        from apr_tui.screens.train import TrainScreen  # it loads numpy
        from apr_tui.screens.train_prompt import ask_training, default_line

        def begin(training: Training) -> None:
            self.training = training
            training.start()
            self.push_screen(TrainScreen(training))

        if self.training is not None:
            self.push_screen(TrainScreen(self.training))
        else:
            ask_training(self, say, default_line(device), begin)

    def trace_file(self, path: Path) -> None:
        """Trace a model file on the main screen."""
        request = self.base.request.with_file(path)
        self.base.start(replace(request, options=replace(request.options, layers=None)))

    # ends

    def leave(self, code: int) -> None:
        """Cancel what runs and close with an exit code."""
        self.worker.cancel()
        if self.training is not None:
            self.training.stop()
        self.exit(code, return_code=code)

    def action_interrupt(self) -> None:
        """Ctrl-C: cancel what runs; leave where nothing does, or where it was asked to end already."""
        owner = self.owner
        if owner is None or self.worker.is_cancelling or not self.cancel_job():
            self.leave(leaving.SIGNAL_EXIT)
        else:
            owner.say("cancelling ... ctrl+c again leaves", "watch")

    def _on_cut(self, number: int, frame: FrameType | None) -> None:
        """A mapped file was cut: close with its sentence."""
        if self._cut_soon is not None:
            self._cut_soon()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Leave; not through the loop's own handlers, which a write to a closed terminal would block."""
        is_training = self.training is not None and self.training.is_under_way
        patience = leaving.TRAIN_PATIENCE_S if is_training else leaving.PATIENCE_S
        leaving.end_soon(leaving.SIGNAL_EXIT, self.terminal_restorer(), patience)
        if self._leave_soon is not None:
            self._leave_soon()
