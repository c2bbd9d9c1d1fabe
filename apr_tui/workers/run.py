"""Run the session's work in a thread: events come in, frozen frames and one ending go out as messages. It draws
nothing.

Thread -> JobProgress (collects) -> Frame (a snapshot) -> one message -> repaint. A frame that waits is replaced by a
newer one, so a slow line drops frames instead of lagging.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from textual.message import Message

from core.model.stages import Place
from core.system.errors import AprError, Cancelled, FileError, system_error
from core.system.gpu_errors import device_error
from core.system.mapped_file import cut_error, cut_files
from core.system.progress import Phase, Reached
from core.trace.events import CellMeasured, Event, FilesCompared, StageJudged, Start, TokenGenerated

FRAME_S = 0.08     # at most a dozen frames a second
SWITCH_S = 0.001   # the worker hands the interpreter over this often, so that keys are answered
JOIN_S = {"export": 10.0}  # how long leaving waits for a job to notice: a bundle is whole or absent
USUAL_JOIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Frame:
    """What a job has told so far. cells: by side ("" for one trace, A and B for a pair). known: of the opened model.

    latest: the place measured last; None where a phase has begun since.
    """

    serial: int  # of the job
    number: int  # within the job: a tick may overtake a message
    kind: str
    phase: str = ""
    step: tuple[int, int] | None = None  # of a phase that is one of several alike: which, of how many
    reached: int | None = None           # the layer that such a phase has ended
    since: float = 0.0                   # when the phase began, of time.monotonic
    n_layer: int | None = None
    tokens: tuple[Any, ...] = ()
    generated: str = ""
    cells: Mapping[str, Mapping[Place, Any]] = field(default_factory=dict, repr=False)
    errors: Mapping[Place, Any] = field(default_factory=dict, repr=False)
    latest: Place | None = None
    side: str = ""
    known: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: tuple[str, ...] = ()  # of a pair: what they differ in


class Progress(Message):
    """A newer frame."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def can_replace(self, message: Message) -> bool:
        """A newer frame says all that an older one does."""
        return isinstance(message, Progress)


class JobFinished(Message):
    """A run's end. error: an AprError (Cancelled too) or an internal error; None where result holds what was asked."""

    def __init__(self, serial: int, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        super().__init__()
        self.serial, self.kind, self.result, self.error = serial, kind, result, error


class MessageTarget(Protocol):
    """Something that takes messages from any thread: the App."""

    def post_message(self, message: Message) -> bool:
        """Queue a message."""


class JobProgress:
    """Collects a run's events in its thread, and makes frames of them. The session gets emit and cancelled."""

    def __init__(self, serial: int, kind: str, target: MessageTarget) -> None:
        self.serial, self.kind = serial, kind
        self._target = target
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {}
        self._cells: dict[str, dict[Place, Any]] = {}
        self._errors: dict[Place, Any] = {}
        self._known: dict[str, Any] = {}
        self._posted = 0.0
        self._number = 0
        self._is_new = False

    def cancelled(self) -> bool:
        """Say whether the run should end."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Ask the run to end."""
        self._stop.set()

    def emit(self, event: Event) -> None:
        """Take one event of the session."""
        with self._lock:
            match event:
                case Phase(text, step, n_step):
                    self._begin(text, (step, n_step) if step is not None and n_step is not None else None)
                case Reached(layer):
                    self._fields["reached"] = layer
                case Start(n_layer, tokens):
                    if n_layer is not None:
                        self._fields["n_layer"] = n_layer
                    self._fields["tokens"] = tokens
                case CellMeasured(place, cell, side):
                    self._cells.setdefault(side or "", {})[place] = cell
                    if not self._errors:  # a check judges a cell a little after it was measured
                        self._fields |= {"latest": place, "side": side or ""}
                case FilesCompared(sentences):
                    self._fields["files"] = sentences
                case TokenGenerated(text):
                    self._fields["generated"] = self._fields.get("generated", "") + text
                case StageJudged(place, error):
                    self._errors[place] = error
                    self._fields["latest"] = place
            self._is_new = True
        self._post()

    def say(self, phase: str, **known: Any) -> None:  # noqa: ANN401
        """Say what is being done, and any fact that the title shows."""
        with self._lock:
            self._begin(phase, None)
            self._known |= known
            self._is_new = True
        self._post()

    def _begin(self, phase: str, step: tuple[int, int] | None) -> None:
        self._fields |= {"phase": phase, "latest": None, "step": step, "reached": None, "since": time.monotonic()}

    def emit_depth(self, n_layer: int | None) -> None:
        """Say how many layers there are, before the run starts."""
        if n_layer is not None:
            with self._lock:
                self._fields["n_layer"] = n_layer

    def again(self) -> None:
        """The last frame was dropped: the next tick shall have one."""
        self._is_new = True

    def frame(self) -> Frame | None:
        """Take a snapshot; None where nothing is new since the last."""
        with self._lock:
            if not self._is_new:
                return None
            self._is_new = False
            self._number += 1
            cells = {side: dict(found) for side, found in self._cells.items()}
            errors, known = dict(self._errors), dict(self._known)
            return Frame(self.serial, self._number, self.kind, cells=cells, errors=errors, known=known, **self._fields)

    def _post(self) -> None:
        now = time.monotonic()
        if now - self._posted < FRAME_S:
            return
        self._posted = now
        frame = self.frame()
        if frame is not None:
            self._target.post_message(Progress(frame))


class RunWorker:
    """Runs one job at a time in a daemon thread; a new job cancels the one before, whose messages are too old."""

    def __init__(self, target: MessageTarget) -> None:
        self._target = target
        self._serial = 0
        self._kind = ""
        self._progress: JobProgress | None = None
        self._thread: threading.Thread | None = None

    @property
    def serial(self) -> int:
        """Number of the newest job; messages of older ones are to be ignored."""
        return self._serial

    @property
    def kind(self) -> str:
        """What the newest job does."""
        return self._kind

    @property
    def is_cancelling(self) -> bool:
        """Whether the running job was asked to end."""
        progress = self.progress
        return progress is not None and progress.cancelled()

    @property
    def progress(self) -> JobProgress | None:
        """The running job's progress."""
        return self._progress if self._thread is not None and self._thread.is_alive() else None

    def start(self, kind: str, job: Callable[[JobProgress], Any]) -> None:
        """Cancel what runs and start a job."""
        self.cancel()
        sys.setswitchinterval(SWITCH_S)
        self._serial += 1
        before, progress = self._thread, JobProgress(self._serial, kind, self._target)
        self._progress, self._kind = progress, kind
        arguments = (kind, job, progress, before)
        self._thread = threading.Thread(target=self._run, args=arguments, name=f"apr-{kind}", daemon=True)
        self._thread.start()

    def cancel(self) -> bool:
        """Ask the running job to end; False where nothing runs."""
        progress = self.progress
        if progress is None:
            return False
        progress.cancel()
        return True

    def leave(self) -> bool:
        """Cancel, wait a little, and say whether the thread has ended."""
        self.cancel()
        if self._thread is not None:
            self._thread.join(JOIN_S.get(self._kind, USUAL_JOIN_S))
        return self._thread is None or not self._thread.is_alive()

    def _run(
        self, kind: str, job: Callable[[JobProgress], Any], progress: JobProgress, before: threading.Thread | None
    ) -> None:
        if before is not None:
            if before.is_alive():
                progress.say("waiting for the run before to end")
            before.join()  # one forward at a time: two would share the cores and the memory map
        result: Any = None
        error: Exception | None = None
        try:
            if progress.cancelled():
                raise Cancelled("cancelled before it started")
            result = job(progress)
        except AprError as found:
            error = cut_error() if isinstance(found, FileError) and cut_files() else found
        except OSError as found:
            error = device_error(found) or system_error(found)
        except Exception as found:  # noqa: BLE001 (an internal error of the job: the App closes the screen and writes the log)
            error = device_error(found) or found
        frame = progress.frame()
        if frame is not None:
            self._target.post_message(Progress(frame))
        self._target.post_message(JobFinished(progress.serial, kind, result, error))
