"""The command train: start, watch or detach a training run; progress on stderr, one document on stdout.

What a run does is train/run.py's. Nothing of torch is loaded here.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from apr_tui.options import train_options
from core.system.child import child_command, child_environment, start_apart
from core.system.errors import OutputError, UsageError
from core.system.json_text import to_json
from core.system.progress import Phase
from core.train.config import TrainOptions
from core.train.events import CheckpointWritten, Note, StepTaken, TrainEvent, Validated
from core.train.log import GRADS, read_lines
from core.train.prepare import LOG, is_first, prepare
from core.train.reader import RunReader, open_run
from core.train.records import RUNNING, RunView, TrainResult
from core.train.run import train

POLL_S = 1.0
STEP_LINES_S = 0.5  # progress lines stand this far apart at least


def run_train(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit code."""
    if options.watch is not None:
        return _watch(options)
    if options.out is None:
        raise UsageError("train needs --out DIR for its run, or --watch DIR to follow one.")
    asked = train_options(options)
    if options.detach:
        return _detach(options, asked)
    with _stop_on_signals() as cancelled:
        result = train(asked, _progress(options), cancelled)
    if not is_first():
        return result.exit_code
    sys.stdout.write(to_json(result_document(result)) + "\n" if options.json else result_text(result))
    return result.exit_code


def result_text(result: TrainResult) -> str:
    """The end of a run for a person: gates, losses, where the checkpoint is."""
    width = max((len(gate.id) for gate in result.gates), default=0)
    lines = [f"{gate.verdict:<12} {gate.id:<{width}}  {gate.measured}" for gate in result.gates]
    lines.append(f"{result.status}: {result.sentence}")
    if result.final_train_loss is not None:
        val = "not measured" if result.final_val_loss is None else f"{result.final_val_loss:.4f}"
        lines.append(f"train_loss {result.final_train_loss:.4f}, val_loss {val}")
    if result.checkpoint is not None:
        lines.append(f"trace it: {shlex.join(['apr-tui', 'trace', str(result.checkpoint / 'model.gguf')])}")
    return "\n".join(lines) + "\n"


def result_document(result: TrainResult) -> dict[str, Any]:
    """The same for a program."""
    return {"schema": "apr-tui-train/1", "status": result.status, "sentence": result.sentence, "out": result.out,
            "steps_done": result.steps_done, "train_loss": result.final_train_loss, "val_loss": result.final_val_loss,
            "gates": result.gates, "checkpoint": result.checkpoint, "exit_code": result.exit_code}


def _watch(options: argparse.Namespace) -> int:
    """Show a run: the screen at a terminal; as text, once into a pipe, again and again with --quiet; JSON."""
    folder = Path(options.watch)
    if not (options.json or options.quiet) and all(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)):
        return _watch_on_screen(folder)
    if options.json:
        view = open_run(folder)
        document = {name: getattr(view, name) for name in RunView.__dataclass_fields__}
        sys.stdout.write(to_json({**document, "grads": read_lines(folder / GRADS)[-1:]}) + "\n")
        return 0
    from apr_tui.render.train_state import view_text  # it loads Textual, for which a run that trains has no use

    reader = RunReader(folder)
    view = reader.view()
    sys.stdout.write(view_text(view))
    while sys.stdout.isatty() and view.status == RUNNING and view.alive is not False:
        sys.stdout.flush()
        time.sleep(POLL_S)
        view = reader.view()
        sys.stdout.write("\n" + view_text(view))
    return 0


def _watch_on_screen(folder: Path) -> int:
    """Follow a run on the training screen; FileError before it opens where the folder is none."""
    open_run(folder)
    from apr_tui.app import run_console
    from apr_tui.request import Request
    from apr_tui.workers.train import Training

    return run_console(Request(), training=Training(folder))


def _detach(options: argparse.Namespace, asked: TrainOptions) -> int:
    """Start the run in a session of its own, which no terminal ends; its words go to log.txt."""
    prepare(asked)  # whatever can be refused is refused here, where somebody reads it
    words = [word for word in options.words if word != "--detach"]
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        with (asked.out / LOG).open("a") as log:
            child = start_apart((*child_command("apr_tui"), *words), log, child_environment())
    except OSError as error:
        raise OutputError(f"{asked.out / LOG} could not be written: {error.strerror}. Give another --out.") from error
    if options.json:
        sys.stdout.write(to_json({"pid": child.pid, "out": asked.out, "log": asked.out / LOG}) + "\n")
    else:
        print(f"process {child.pid} trains on; its words are in {asked.out / LOG}")
        print(f"watch it: {shlex.join(['apr-tui', 'train', '--watch', str(asked.out)])}")
    return 0


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield whether a signal asked for the end; the same one again ends at once.

    Another one does not: torchrun sends its processes SIGTERM right after the Ctrl-C that they have had themselves.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), note) for name in names}
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _progress(options: argparse.Namespace) -> Callable[[TrainEvent], None]:
    """Tell on stderr what happens, a step's line at most twice a second."""
    if options.quiet:
        return lambda event: None
    spoken = [0.0]

    def emit(event: TrainEvent) -> None:
        text = event_text(event)
        if isinstance(event, StepTaken):
            if time.monotonic() - spoken[0] < STEP_LINES_S:
                return
            spoken[0] = time.monotonic()
        if text:
            print(text, file=sys.stderr, flush=True)

    return emit


def event_text(event: TrainEvent) -> str:
    """One line for an event; empty for what the end of the run prints anyway."""
    match event:
        case Phase(text):
            return f"{text} ..."
        case Note(text):
            return text
        case StepTaken(s):
            return f"step {s.step}  loss {s.train_loss:.4f}  norm {s.grad_norm:.3f}  lr {s.lr:.3g}  {s.wall_ms:.0f} ms"
        case Validated(v):
            return f"epoch {v.epoch}  val_loss {v.val_loss:.4f}"
        case CheckpointWritten(path):
            return f"wrote {path}"
        case _:
            return ""


