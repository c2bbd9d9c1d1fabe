"""The door of training: settle what is asked, train, and read a run's folder back. It prints nothing.

torch is imported after the device, the plan, the folder and the files have been held to what they must be.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.arch import read_arch
from core.cancel import IsCancelled, never
from core.errors import AprError, Cancelled, FileError, OutputError, UsageError
from core.reader import open_model
from core.telemetry import choose_device
from core.train_config import Plan, TrainOptions, n_parameters, plan_of, resumed, settle
from core.train_corpus import Corpus, open_corpus
from core.train_log import RUN, SCHEMA, read_document, rewind, write_document
from core.train_records import (
    FAILED,
    INTERRUPTED,
    RUNNING,
    TrainEmit,
    TrainEvent,
    TrainResult,
    Wishes,
    no_train_emit,
)
from core.train_tokenizer import Vocabulary, file_vocabulary, read_vocabulary
from core.train_view import is_alive, newest_checkpoint, open_run

__all__ = ["Ready", "is_first", "open_run", "prepare", "train"]

LOG = "log.txt"                       # of a detached run: it may stand in the folder before the run does
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "gguf")


@dataclass(frozen=True, slots=True)
class Ready:
    """A run held to its device, plan and folder; nothing is written yet. run: what run.json said, for a resume."""

    options: TrainOptions
    plan: Plan
    device: str
    reason: str
    run: dict[str, Any] | None


def prepare(options: TrainOptions) -> Ready:
    """Hold the options to the machine and the folder, in a fraction of a second, without torch and without a trace.

    Errors: DeviceError (an explicit device that is absent), UsageError, FileError, OutputError.
    """
    device, reason = choose_device(options.device)
    if options.resume:
        return _prepare_resume(options, device, reason)
    if is_first():
        hold_folder(options.out)
    arch = None
    if options.init is not None:
        file = open_model(options.init)
        arch = read_arch(file)
    return Ready(options, settle(options, arch), device, reason, None)


def _prepare_resume(options: TrainOptions, device: str, reason: str) -> Ready:
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
    return Ready(options, plan, device, reason, run)


def is_first() -> bool:
    """Whether this is the process that writes the files (torchrun's rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def hold_folder(out: Path) -> None:
    """Refuse a folder that holds something, or that cannot be made, before the work; UsageError, OutputError."""
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


def train(
    options: TrainOptions, emit: TrainEmit = no_train_emit, cancelled: IsCancelled = never,
    wishes: Wishes | None = None,
) -> TrainResult:
    """Train; cancelled() ends the run after the step in flight, with a checkpoint. Errors as prepare, and Cancelled."""
    ready = prepare(options)
    tell = emit if is_first() else no_train_emit
    for note in (f"device {ready.device}: {ready.reason}", *ready.plan.reasons):
        tell(TrainEvent("note", note))
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # else the first process makes the shards, once all have met
    corpus = read_corpus(ready, tell, cancelled) if alone else None
    tell(TrainEvent("phase", "loading torch"))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from core.train_session import run_training

    try:
        return run_training(ready, corpus, tell, cancelled, wishes or Wishes())
    except AprError as error:
        note_failure(options.out, error)
        raise


def read_corpus(ready: Ready, emit: TrainEmit, cancelled: IsCancelled) -> Corpus:
    """Open or make the shards, and say how often the plan reads them."""
    def said(text: str) -> None:
        emit(TrainEvent("phase", text))
        if cancelled():
            raise Cancelled("stopped before step 0; nothing was trained")

    plan = ready.plan
    corpus = open_corpus(
        Path(plan.corpus) if plan.corpus else None, given_vocabulary(plan), plan.arch.n_vocab, plan.corpus_mib,
        ready.options.out, said)
    planned, there = plan.steps * plan.step_tokens, corpus.shards.n_train
    notes = [*corpus.notes, f"{there} training tokens, {planned} planned"]
    if planned > there:
        notes[-1] += f": {planned / there:.1f} epochs of the data"
    for note in notes:
        emit(TrainEvent("note", note))
    return replace(corpus, notes=tuple(notes))


def given_vocabulary(plan: Plan) -> Vocabulary | None:
    """The vocabulary of --tokenizer, else of --init; None where one is to be trained or comes with the shards."""
    if plan.tokenizer:
        return read_vocabulary(Path(plan.tokenizer))
    return file_vocabulary(open_model(Path(plan.init))) if plan.init else None


def first_document(ready: Ready, corpus: Corpus, facts: dict[str, Any]) -> dict[str, Any]:
    """What run.json says before step 0; facts: of the device and the world."""
    plan, manifest = ready.plan, corpus.shards.manifest
    return {
        "schema": SCHEMA, "status": RUNNING, "sentence": "", "command": ready.options.command, "pid": os.getpid(),
        "host": platform.node(), "started": time.time(), "resumes": [], "plan": asdict(plan),
        "parameters": n_parameters(plan.arch), "device": ready.device, "device_reason": ready.reason,
        "device_wanted": ready.options.device, **facts,
        "corpus": {"folder": str(corpus.shards.folder), "sha256": manifest.get("corpus_sha256"),
                   "documents": manifest.get("documents"), "train_tokens": corpus.shards.n_train,
                   "notes": corpus.notes},
        "tokenizer_sha256": corpus.vocabulary.sha256 if corpus.vocabulary else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "executable": sys.executable,
    }


def next_document(ready: Ready, corpus: Corpus, facts: dict[str, Any], steps_done: int) -> dict[str, Any]:
    """What run.json says of a resumed run; UsageError where the data is not that of the run. Logs are cut back."""
    assert ready.run is not None
    fresh = first_document(ready, corpus, facts)
    for name, old, new in (("corpus", ready.run["corpus"]["sha256"], fresh["corpus"]["sha256"]),
                           ("tokenizer", ready.run["tokenizer_sha256"], fresh["tokenizer_sha256"])):
        if old != new:
            raise UsageError(f"the {name} is not the one that {ready.options.out} began with (its hash differs). "
                             "Put it back, or begin a new run.")
    cut = rewind(ready.options.out, steps_done)
    note = {"at": time.time(), "steps_done": steps_done, "trained_again": cut, "command": ready.options.command}
    return {**fresh, "started": ready.run["started"], "resumes": [*ready.run.get("resumes", []), note]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def note_failure(out: Path, error: AprError) -> None:
    """Leave the reason in run.json where there is one and it can be written."""
    try:
        if (out / RUN).is_file() and is_first():
            status = INTERRUPTED if isinstance(error, Cancelled) else FAILED
            write_document(out / RUN, {**read_document(out / RUN), "status": status, "sentence": str(error)})
    except AprError:
        return
