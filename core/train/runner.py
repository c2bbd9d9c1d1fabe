"""Bring a prepared run to its end: build the model, probe it, train it, judge it. The steps themselves: loop.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.formats.open_model import open_model
from core.system.errors import Cancelled, DeviceError, OutputError
from core.system.gpu_errors import device_error, place_on_device
from core.system.gpus import GpuSampler
from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate
from core.system.progress import Phase
from core.train.checkpoint import State, checkpoints, read_checkpoint
from core.train.checks.gates import RunFacts, judge
from core.train.checks.invariants import RULES, schedule_notes
from core.train.checks.probes import GOLDEN_TOLERANCE, PROBES, golden_difference
from core.train.checks.windows import judge_windows
from core.train.config import VAL_WINDOWS, Plan
from core.train.data.corpus import Corpus
from core.train.data.shards import held_out, make_order
from core.train.distributed import DistributedContext, choose_compile, choose_parallel, join, leave, wrap
from core.train.events import GatesJudged, Note, RunEnded, TrainEmit
from core.train.float64_gradients import oracle_gate, write_oracle
from core.train.log import (
    GATES,
    GRADS,
    RUN,
    TRAIN,
    VAL,
    read_health,
    read_lines,
    read_record,
    reading_records,
    write_document,
    write_residency,
)
from core.train.loop import Trainer, facts_of_residency
from core.train.model import Decoder, load_decoder, make_decoder
from core.train.prepare import PreparedRun, read_corpus
from core.train.records import ABORTED, RunControls, Step, TrainResult, Validation
from core.train.run_document import first_document, next_document
from core.train.step import Stepper, make_optimizer

# what a rule is held against; else steps
CHECKED_UNITS = {"INV-GRADIENT": "gradient tables", "INV-CENSUS": "looks at all weights"}


def run_training(
    prepared: PreparedRun, corpus: Corpus | None, emit: TrainEmit, cancelled: Callable[[], bool], controls: RunControls,
) -> TrainResult:
    """Train what is ready; corpus None: the first process opens it, the others after it."""
    if prepared.options.threads is not None:
        torch.set_num_threads(prepared.options.threads)
    prepared = _usable(prepared, emit)
    world = join(prepared.device, prepared.plan)
    try:
        if corpus is None:
            corpus = read_corpus(prepared, emit, cancelled) if world.is_first else None
            world.wait()
            corpus = corpus or read_corpus(prepared, emit, cancelled)
        trainer, facts, probes = _build(prepared, corpus, world, emit, cancelled, controls)
        document = _open_run(prepared, corpus, facts, trainer) if world.is_first else {}
        world.wait()
        if prepared.run is not None:
            _take_up_logs(trainer)
        if cancelled() and world.size == 1 and not trainer.steps_done:
            raise Cancelled("stopped before step 0; nothing was trained")
        return _finish(prepared, trainer, document, probes)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{world.device} ran out of memory with {prepared.plan.batch} x {prepared.plan.seq} tokens a step "
            f"on {world.size} process(es). Give a smaller --batch or --seq."
        ) from error
    except RuntimeError as error:
        failed = device_error(error, "The last checkpoint is kept: go on with --resume.")
        if failed is None:
            raise
        raise failed from error
    finally:
        leave(world)


def _usable(prepared: PreparedRun, emit: TrainEmit) -> PreparedRun:
    """The same, on the CPU where the device was left to us and takes no work."""
    device, reason = place_on_device(prepared.options.device, prepared.device, prepared.reason)
    if device == prepared.device:
        return prepared
    emit(Note(f"device {device}: {reason}"))
    return replace(prepared, device=device, reason=reason)


def _build(
    prepared: PreparedRun, corpus: Corpus, world: DistributedContext, emit: TrainEmit, cancelled: Callable[[], bool],
    controls: RunControls,
) -> tuple[Trainer, dict[str, Any], dict[str, str | None]]:
    """Make the trainer, say how it will run, and probe the fresh model."""
    plan = prepared.plan
    order, windows = make_order(corpus.shards, plan.seq, plan.seed), held_out(corpus.shards, plan.seq, VAL_WINDOWS)
    emit(Phase("building the model"))
    model = _model(plan).to(world.device)
    parallel, parallel_reason = choose_parallel(prepared.options.parallel, plan, world)
    is_compiled, compile_reason = choose_compile(prepared.options.compile, plan, world.device)
    if is_compiled and len(windows) > plan.batch:  # whole batches: another shape would be compiled anew
        windows = windows[: len(windows) // plan.batch * plan.batch]
    facts: dict[str, Any] = {
        "device_name": _device_name(world), "processes": world.size, "parallel": f"{parallel}: {parallel_reason}",
        "compile": f"{'yes' if is_compiled else 'no'}: {compile_reason}", "threads": torch.get_num_threads()}
    for name in ("parallel", "compile"):
        emit(Note(f"{name}: {facts[name]}"))
    saved = _newest(prepared)
    probes = _probe(prepared, model, world, emit) if saved is None else _probes_before(prepared)
    facts["probes"] = sorted(id for id, sentence in probes.items() if sentence is None)
    stepper = Stepper(model, wrap(model, parallel, is_compiled, world), make_optimizer(model), world.device,
                      *((world.sum_up, world.size, world.largest) if world.size > 1 else ()))
    trainer = Trainer(plan, prepared.options.out, world, stepper, order, windows, corpus.vocabulary, _sampler(world),
                      emit,
                      cancelled, controls, prepared.options.checkpoints)
    if saved is not None:
        trainer.restore(saved)
    return trainer, facts, probes


def _finish(
    prepared: PreparedRun, trainer: Trainer, document: dict[str, Any], probes: dict[str, str | None]
) -> TrainResult:
    """Train unless a probe failed; judge; write gates.json and run.json."""
    failed = next(((id, sentence) for id, sentence in probes.items() if sentence), None)
    oracle: tuple[Gate, ...] = ()
    if trainer.sampler is not None:
        trainer.sampler.start()
    try:
        if failed is not None:
            trainer.violation = failed
            status, sentence = ABORTED, f"{failed[0]}: {failed[1]}"
        else:
            if prepared.options.oracle and not trainer.steps_done:
                oracle = (oracle_gate(write_oracle(trainer)),)
            trainer.emit(Phase("training"))
            status, sentence = trainer.run()
    finally:
        if trainer.sampler is not None:
            trainer.sampler.stop()
    gates = (*_judge(prepared, trainer, document, probes), *oracle) if trainer.world.is_first else ()
    if trainer.world.is_first:
        write_document(trainer.out / GATES, {"gates": gates})
        write_document(trainer.out / RUN, document | {"status": status, "sentence": sentence})
    kept = checkpoints(trainer.out)
    trainer.emit(GatesJudged(gates))
    trainer.emit(RunEnded(status, sentence))
    return TrainResult(
        status, sentence, trainer.out, trainer.steps_done, trainer.steps[-1].train_loss if trainer.steps else None,
        trainer.validations[-1].val_loss if trainer.validations else None, gates, kept[-1][1] if kept else None)


def _judge(
    prepared: PreparedRun, trainer: Trainer, document: dict[str, Any], probes: dict[str, str | None]
) -> tuple[Gate, ...]:
    residency = facts_of_residency(trainer, trainer.world.device.index or 0)
    document["residency"] = residency
    write_residency(trainer.out, residency)
    trainer.emit(Phase("golden run on the CPU"))
    difference = golden_difference()
    document["golden_difference"] = difference
    facts = RunFacts(prepared.plan, str(trainer.world.device), prepared.options.device, document["device_name"],
                     trainer.steps,
                  trainer.validations, trainer.violation, residency, difference, GOLDEN_TOLERANCE,
                  prepared.options.budget_ms)
    rules = [(id, rule) for id, rule, _ in PROBES] + [(id, rule) for id, rule, _ in RULES]
    rules.append(("INV-CENSUS", "no weight of a checkpoint is NaN or Inf"))
    rows_ = [_invariant(id, rule, trainer, probes) for id, rule in rules]
    return (*judge(facts), *rows_, *judge_windows(prepared.plan, trainer.steps, trainer.health))


def _invariant(id: str, rule: str, trainer: Trainer, probes: dict[str, str | None]) -> Gate:
    if trainer.violation is not None and trainer.violation[0] == id:
        return Gate(id, rule, trainer.violation[1], FAIL, TRAIN)
    if id in probes:
        return Gate(id, rule, "tried before step 0", PASS, RUN)
    checks_run, of = trainer.checks_run[id], CHECKED_UNITS.get(id, "steps")
    return Gate(id, rule, f"{checks_run} {of}" if checks_run else "not looked at", PASS if checks_run else NOT_MEASURED,
                TRAIN)


def _take_up_logs(trainer: Trainer) -> None:
    """Read what the run has logged before; each logged step was held to the rules when it was taken."""
    with reading_records(trainer.out):
        trainer.steps = [read_record(Step, row) for row in read_lines(trainer.out / TRAIN)]
        trainer.validations = [read_record(Validation, row) for row in read_lines(trainer.out / VAL)]
        tables = read_lines(trainer.out / GRADS)
        trainer.health = [health for row in tables if (health := read_health(row)) is not None]
    trainer.checks_run.update({id: len(trainer.steps) for id, _, _ in RULES} | {
        "INV-GRADIENT": len(tables), "INV-CENSUS": len(checkpoints(trainer.out))})


def _model(plan: Plan) -> Decoder:
    if plan.init is not None:
        return load_decoder(open_model(Path(plan.init)), plan.arch)
    return make_decoder(plan.arch, plan.seed)


def _probe(prepared: PreparedRun, model: Decoder, world: DistributedContext, emit: TrainEmit) -> dict[str, str | None]:
    """Run the probes on the model before it is wrapped."""
    emit(Phase("probing the model before step 0"))
    stepper = Stepper(model, model, make_optimizer(model), world.device)
    return {id: probe(stepper, prepared.plan.arch, prepared.plan.seed) for id, _, probe in PROBES}


def _probes_before(prepared: PreparedRun) -> dict[str, str | None]:
    """The probes that a run which goes on has passed when it began."""
    return dict.fromkeys((prepared.run or {}).get("probes", ()))


def _newest(prepared: PreparedRun) -> State | None:
    """The newest checkpoint of a run that goes on; None before the first."""
    kept = checkpoints(prepared.options.out) if prepared.run is not None else []
    return read_checkpoint(kept[-1][1]) if kept else None


def _open_run(prepared: PreparedRun, corpus: Corpus, facts: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Make the folder, write run.json, and take up the logs of a run that goes on."""
    out = prepared.options.out
    if prepared.run is None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out} could not be made: {error.strerror}. Give another --out.") from error
        document = first_document(prepared, corpus, facts)
    else:
        document = next_document(prepared, corpus, facts, trainer.steps_done)
    for note in schedule_notes(prepared.plan):
        trainer.emit(Note(note))
    write_document(out / RUN, document)
    return document


def _sampler(world: DistributedContext) -> GpuSampler | None:
    if world.device.type != "cuda" or not world.is_first:
        return None
    uuid = getattr(torch.cuda.get_device_properties(world.device), "uuid", None)
    return GpuSampler(world.device.index or 0, None if uuid is None else f"GPU-{uuid}")


def _device_name(world: DistributedContext) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"cpu ({os.cpu_count()} cores)"
