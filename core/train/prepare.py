"""Settle what a training run shall be: device, plan, folder, corpus. Nothing is trained, and torch is not loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled, FileError, OutputError, UsageError, os_reason
from core.system.gpus import choose_device
from core.system.progress import Phase
from core.train.config import Plan, TrainOptions, plan_of, resumed, settle
from core.train.data.corpus import Corpus, open_corpus
from core.train.data.vocabulary import Vocabulary, file_vocabulary, read_vocabulary
from core.train.events import Note, TrainEmit
from core.train.log import RUN, read_document
from core.train.reader import is_alive, newest_checkpoint

LOG = "log.txt"                       # of a detached run: it may stand in the folder before the run does


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run whose device, plan and folder were validated; nothing is written yet. run: what run.json said, for a
    resume.
    """

    options: TrainOptions
    plan: Plan
    device: str
    reason: str
    run: dict[str, Any] | None


def prepare(options: TrainOptions) -> PreparedRun:
    """Hold the options to the machine and the folder, in a fraction of a second, without torch and without a trace.

    Errors: DeviceError (an explicit device that is absent), UsageError, FileError, OutputError.
    """
    device, reason = choose_device(options.device)
    if options.resume:
        return _prepare_resume(options, device, reason)
    if is_first():
        validate_folder(options.out)
    arch = None
    if options.init is not None:
        file = open_model(options.init)
        arch = read_arch(file)
    return PreparedRun(options, settle(options, arch), device, reason, None)


def _prepare_resume(options: TrainOptions, device: str, reason: str) -> PreparedRun:
    """Take the plan from run.json; no fewer steps than the newest checkpoint has."""
    run = read_document(options.out / RUN)
    try:
        plan = resumed(plan_of(run["plan"]), options)
    except (KeyError, TypeError) as error:
        raise FileError(f"{options.out / RUN} is no training run ({error!r}). Give the folder of one.") from error
    if is_first() and is_alive(run):
        raise UsageError(f"{options.out} is being trained by process {run['pid']}. "
                         f"Follow it with --watch {options.out}, or stop it first.")
    newest = newest_checkpoint(options.out)
    done = int(newest.name.partition("-")[2]) if newest is not None else 0
    if plan.steps < done:
        raise UsageError(f"--steps {plan.steps}: {newest} has {done} steps already. Give more, or leave --steps out.")
    return PreparedRun(options, plan, device, reason, run)


def is_first() -> bool:
    """Whether this is the process that writes the files (torchrun's rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def validate_folder(out: Path) -> None:
    """Refuse a folder that holds something, or that cannot be made, before the work; UsageError, OutputError."""
    try:
        _validate_folder(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {os_reason(error)}. Give another --out.") from error


def _validate_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is no folder. Give another --out.")
    if (out / RUN).exists():
        raise UsageError(f"{out} already holds a training run. Continue it with --resume, or give another --out.")
    if out.is_dir() and any(path.name != LOG for path in out.iterdir()):
        raise UsageError(f"{out} exists and is not empty. Give another --out.")
    above = out
    while not above.exists():
        above = above.absolute().parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be made: {above} is not a folder that can be written. Give another --out.")


def read_corpus(prepared: PreparedRun, emit: TrainEmit, cancelled: IsCancelled) -> Corpus:
    """Open or make the shards, and say how often the plan reads them."""
    def on_message(text: str) -> None:
        emit(Phase(text))
        if cancelled():
            raise Cancelled("stopped before step 0; nothing was trained")

    plan = prepared.plan
    corpus = open_corpus(
        Path(plan.corpus) if plan.corpus else None, given_vocabulary(plan), plan.arch.n_vocab, plan.corpus_mib,
        prepared.options.out, on_message)
    planned, there = plan.steps * plan.step_tokens, corpus.shards.n_train
    notes = [*corpus.notes, f"{there} training tokens, {planned} planned"]
    if planned > there:
        notes[-1] += f": {planned / there:.1f} epochs of the data"
    for note in notes:
        emit(Note(note))
    return replace(corpus, notes=tuple(notes))


def given_vocabulary(plan: Plan) -> Vocabulary | None:
    """The vocabulary of --tokenizer, else of --init; None where one is to be trained or comes with the shards."""
    if plan.tokenizer:
        return read_vocabulary(Path(plan.tokenizer))
    return file_vocabulary(open_model(Path(plan.init))) if plan.init else None
