"""A training run at the console: trained in a thread of this process, or only watched. It draws nothing.

The screen reads both from the run's folder, so a person sees what is on the disk. A watched run is never stopped.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from apr_tui.shutdown import TRAIN_PATIENCE_S
from apr_tui.workers.run import SWITCH_S, MessageTarget
from core.system.errors import AprError, FileError, system_error
from core.system.progress import Phase
from core.system.safe_text import join_words, safe_text
from core.train.events import Note, StepTaken, TrainEvent
from core.train.log import RUN
from core.train.reader import RunReader
from core.train.records import RUNNING, RunControls, RunView, TrainResult

if TYPE_CHECKING:
    from core.train.config import TrainOptions

POLL_S = 1.0
MAX_NOTES = 12


class TrainNews(Message):
    """There is something new to show."""

    def can_replace(self, message: Message) -> bool:
        """The newer one shows all."""
        return isinstance(message, TrainNews)


class Training:
    """One run. options None: it is watched. train: core.train.run.train; a test may give its own."""

    def __init__(
        self, folder: Path, options: TrainOptions | None = None, train: Callable[..., TrainResult] | None = None,
        line: str = "",
    ) -> None:
        self.folder, self.options, self.line = folder, options, line
        self.controls = RunControls()
        self.phase, self.notes = "starting", list[str]()
        self.view: RunView | None = None
        self.read_error: AprError | None = None
        self.error: Exception | None = None
        self.result: TrainResult | None = None
        self.target: MessageTarget | None = None  # the screen, while one shows this run
        self._train = train
        self._is_left = threading.Event()
        self._lock, self._reader = threading.Lock(), RunReader(folder)
        self._threads: list[threading.Thread] = []

    @property
    def is_own(self) -> bool:
        """Whether this console trains it."""
        return self.options is not None

    @property
    def is_under_way(self) -> bool:
        """Whether this console's own run has not ended."""
        return self.is_own and bool(self._threads) and self.result is None and self.error is None

    @property
    def is_paused(self) -> bool:
        """Whether it waits for a person."""
        return self.is_under_way and self.controls.pause.is_set()

    def start(self) -> None:
        """Begin to train, if it is ours, and to read the folder."""
        sys.setswitchinterval(SWITCH_S)
        jobs = [self._run] if self.is_own else []
        for job in (*jobs, self._follow):
            self._threads.append(threading.Thread(target=job, name=f"apr-train-{job.__name__}", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask our own run to end after the step in flight, with a checkpoint; a watched one goes on."""
        if self.is_own:
            self.controls.stop.set()

    def leave(self, seconds: float = TRAIN_PATIENCE_S) -> bool:
        """Stop reading, stop our own run, wait for it, and say whether it has ended."""
        self.stop()
        self._is_left.set()
        if self.is_own and self._threads:
            self._threads[0].join(seconds)
        return not self.is_under_way

    def shut_down(self, seconds: float = TRAIN_PATIENCE_S) -> bool:
        """End our own run once the screen is closed, say on stderr how to go on, and return whether nothing runs.

        A Ctrl-C meanwhile ends the wait: what is logged and the last checkpoint are whole.
        """
        if not self.is_under_way:
            return self.leave(0.0)
        _say("the training run stops after the step in flight ...")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            ended = self.leave(seconds)
        except KeyboardInterrupt:
            ended = False
        if self.result is not None:
            _say(f"{self.result.status}: {self.result.sentence}")
        elif self.error is not None:
            _say(str(self.error))
        else:
            _say("the run was ended without waiting; its logged steps and last checkpoint are kept. Continue with: "
                 f"{join_words(['apr-tui', 'train', '--resume', '--out', str(self.folder)])}")
        return ended

    def tell(self, event: TrainEvent) -> None:
        """Take one event of the run."""
        match event:
            case Phase(text):
                self.phase = text
                self._post()
            case Note(text):
                self.notes = [*self.notes, text][-MAX_NOTES:]
                self._post()
            case StepTaken():
                self.phase = "training"

    def read(self) -> None:
        """Read the folder once; before our own run has begun it there is nothing to read."""
        with self._lock:
            if self.is_own and not (self.folder / RUN).exists():
                return
            try:
                self.view, self.read_error = self._reader.view(), None
            except FileError as error:
                self.read_error = error
            except OSError as error:
                self.read_error = system_error(error)

    def _run(self) -> None:
        try:
            from core.train.run import train  # it loads torch: in this thread, not at the first paint

            assert self.options is not None
            self.result = (self._train or train)(self.options, self.tell, self.controls.stop.is_set, self.controls)
        except Exception as error:  # noqa: BLE001 (the screen shows an AprError; the console closes at any other)
            self.error = error
        self.phase = ""
        self.read()
        self._post()

    def _follow(self) -> None:
        """Read what is new once a second, until the run has ended or the console is left."""
        try:
            while not self._is_left.is_set():
                self.read()
                self._post()
                over = self.view is not None and self.view.status != RUNNING
                if over and not self.is_under_way:
                    return
                self._is_left.wait(POLL_S)
        except Exception as error:  # noqa: BLE001 (an exception of a thread is kept: the console closes and writes the log)
            self.error = error
            self._post()

    def _post(self) -> None:
        if self.target is not None:
            self.target.post_message(TrainNews())


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the line may be gone
        print(f"apr-tui: {safe_text(text)}", file=sys.stderr, flush=True)
