"""The command train: start, watch or detach a training run; progress on stderr, one document on stdout.

What a run does is train/run.py's. Nothing of torch is loaded here.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser, read_batch, read_count, read_positive, record_of
from core.model.stages import read_whole
from core.system.child import child_command, child_environment, start_apart
from core.system.errors import OutputError, UsageError
from core.system.json_text import to_json
from core.system.limits import BATCH
from core.system.progress import Phase
from core.system.safe_text import join_words, safe_text
from core.train.events import CheckpointWritten, Note, StepTaken, TrainEvent, Validated
from core.train.log import GRADS, read_lines
from core.train.reader import RunReader, open_run
from core.train.records import RUNNING, RunView, TrainResult

if TYPE_CHECKING:
    from core.train.config import TrainOptions

POLL_S = 1.0
SEED_DIGITS = 19   # of 2^63 - 1, the largest
STEP_LINES_S = 0.5  # progress lines stand this far apart at least


class Arguments(Basic):
    """Arguments of train; TrainOptions is read from them."""

    out: Path | None
    watch: Path | None
    detach: bool
    json: bool
    quiet: bool


def read_seed(text: str) -> int:
    """Read a whole number from 0 that 63 bits hold."""
    seed = read_whole(text, SEED_DIGITS)
    if seed is None:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 is needed")
    return seed


def add_arguments(parser: Parser) -> None:
    """Describe the command line; an option that is left out is None: the preset, the mode or the resumed run says."""
    add = parser.add_argument
    add("--config", metavar="NAME", help="model and run: tiny (default), 370m or FILE.toml")
    add("--corpus", type=Path, metavar="DIR", help="text or token shards (default: Python's own library)")
    add("--tokenizer", type=Path, metavar="DIR", help="vocab.json and merges.txt (default: one is trained)")
    add("--steps", type=read_count, metavar="N", help="number of optimizer steps")
    add("--batch", type=read_batch, metavar="B", help=f"sequences per step, 1 to {BATCH}")
    add("--seq", type=read_count, metavar="S", help="tokens per sequence")
    add("--steps-per-epoch", type=read_count, metavar="E", help="steps between validations")
    add("--mode", choices=("from-scratch", "finetune"), help="sets rate, warm-up, target and cap together")
    add("--init", type=Path, metavar="FILE", help="the model to finetune")
    parser.take("--device")
    add("--seed", type=read_seed, metavar="N", help="seed of the weights and of the order of the data (default 42)")
    add("--resume", action="store_true", help="continue the run in --out")
    parser.take("--out")
    add("--lr", type=read_positive, metavar="X", help="peak learning rate, instead of the mode's")
    add("--warm-up", type=read_count, metavar="N", help="steps of linear warm-up")
    add("--checkpoint-every", type=read_count, metavar="N", help="steps between checkpoints (default: an epoch)")
    add("--grads-every", type=read_count, metavar="N", help="steps between gradient tables")
    add("--budget-ms", type=read_positive, metavar="X", help="budget of a step for GATE-GPUTRAIN-004")
    add("--parallel", choices=("auto", "ddp", "fsdp2"), default="auto", help="how processes share the work")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="compile the model's parts")
    parser.take("--threads")
    add("--oracle", action="store_true", help="check the first step's gradients against float64")
    add("--watch", type=Path, metavar="DIR", help="follow a run that another process writes")
    add("--detach", action="store_true", help="keep training after this terminal closes")
    parser.take("--json", "--quiet")


def run(arguments: Arguments) -> int:
    """Train, watch or detach, and return the exit code."""
    if arguments.watch is not None:
        return _watch(arguments, arguments.watch)
    if arguments.out is None:
        raise UsageError("train needs --out DIR for its run, or --watch DIR to follow one.")
    from core.train.config import TrainOptions
    from core.train.prepare import is_first
    from core.train.run import train

    asked = record_of(TrainOptions, arguments)
    if arguments.detach:
        return _detach(arguments, asked)
    with _stop_on_signals() as cancelled:
        result = train(asked, _progress(arguments), cancelled)
    if not is_first():
        return result.exit_code
    sys.stdout.write(to_json(result_document(result)) + "\n" if arguments.json else result_text(result))
    return result.exit_code


def result_text(result: TrainResult) -> str:
    """The end of a run for a person: gates, losses, where the checkpoint is."""
    width = max((len(gate.id) for gate in result.gates), default=0)
    lines = [safe_text(f"{gate.verdict:<12} {gate.id:<{width}}  {gate.measured}") for gate in result.gates]
    lines.append(safe_text(f"{result.status}: {result.sentence}"))
    if result.final_train_loss is not None:
        val = "not measured" if result.final_val_loss is None else f"{result.final_val_loss:.4f}"
        lines.append(f"train_loss {result.final_train_loss:.4f}, val_loss {val}")
    if result.checkpoint is not None:
        lines.append(f"trace it: {join_words(['apr-tui', 'trace', str(result.checkpoint / 'model.gguf')])}")
    return "\n".join(lines) + "\n"


def result_document(result: TrainResult) -> dict[str, Any]:
    """The same for a program."""
    return {"schema": "apr-tui-train/1", "status": result.status, "sentence": result.sentence, "out": result.out,
            "steps_done": result.steps_done, "train_loss": result.final_train_loss, "val_loss": result.final_val_loss,
            "gates": result.gates, "checkpoint": result.checkpoint, "exit_code": result.exit_code}


def _watch(arguments: Arguments, folder: Path) -> int:
    """Show a run: the screen at a terminal; as text, once into a pipe, again and again with --quiet; JSON."""
    if not (arguments.json or arguments.quiet) and all(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)):
        return _watch_on_screen(folder)
    if arguments.json:
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
    from apr_tui.request import Request
    from apr_tui.run import run_console
    from apr_tui.workers.train import Training

    return run_console(Request(), training=Training(folder))


def _detach(arguments: Arguments, asked: TrainOptions) -> int:
    """Start the run in a session of its own, which no terminal ends; its words go to log.txt."""
    from core.train.prepare import LOG, prepare

    prepare(asked)  # whatever can be refused is refused here, where somebody reads it
    words = [word for word in arguments.words if word != "--detach"]
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        with (asked.out / LOG).open("a") as log:
            child = start_apart((*child_command("apr_tui"), *words), log, child_environment())
    except OSError as error:
        raise OutputError(f"{asked.out / LOG} could not be written: {error.strerror}. Give another --out.") from error
    if arguments.json:
        sys.stdout.write(to_json({"pid": child.pid, "out": asked.out, "log": asked.out / LOG}) + "\n")
    else:
        print(f"process {child.pid} trains on; its words are in {safe_text(str(asked.out / LOG))}")
        print(f"watch it: {join_words(['apr-tui', 'train', '--watch', str(asked.out)])}")
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


def _progress(arguments: Arguments) -> Callable[[TrainEvent], None]:
    """Tell on stderr what happens, a step's line at most twice a second."""
    if arguments.quiet:
        return lambda event: None
    spoken = [0.0]

    def emit(event: TrainEvent) -> None:
        text = event_text(event)
        if isinstance(event, StepTaken):
            if time.monotonic() - spoken[0] < STEP_LINES_S:
                return
            spoken[0] = time.monotonic()
        if text:
            print(safe_text(text), file=sys.stderr, flush=True)

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


