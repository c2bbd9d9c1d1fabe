"""Drive a training run on its device: steps, rules, validations, checkpoints, logs. What to run: run.py.

Every process of a torchrun walks the same loop and comes to the same decisions; the first one writes the files.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.system.gpus import GpuSampler
from core.system.outcome import FAIL
from core.system.progress import Phase
from core.train.checkpoint import State, checkpoints, load_moments, moments_of, write_checkpoint
from core.train.checks.gates import diverged
from core.train.checks.invariants import (
    InvariantState,
    StepObservation,
    first_violation,
    not_finite,
    remember,
    rules_checked,
)
from core.train.checks.windows import judge_windows
from core.train.config import Plan, learning_rate
from core.train.data.shards import Order, Tokens, batch_hash
from core.train.data.vocabulary import Vocabulary
from core.train.distributed import DistributedContext, gather
from core.train.events import CheckpointWritten, Note, StepTaken, TrainEmit, Validated
from core.train.gradients import census
from core.train.log import GPU, GRADS, TRAIN, VAL, Lines
from core.train.model import load_values
from core.train.records import ABORTED, DONE, INTERRUPTED, Health, RunControls, Step, Validation
from core.train.step import Measured, Stepper

PAUSE_S = 0.05


@dataclass(slots=True)
class Trainer:
    """A run under way. violation: the rule that ended it, and its sentence; best: (val_loss, steps done) of the
    best.
    """

    plan: Plan
    out: Path
    world: DistributedContext
    stepper: Stepper
    order: Order
    windows: Tokens
    vocabulary: Vocabulary | None
    sampler: GpuSampler | None
    emit: TrainEmit
    cancelled: Callable[[], bool]
    controls: RunControls = field(default_factory=RunControls)
    keeps: bool = True          # whether checkpoints are written
    steps_done: int = 0
    tokens_seen: int = 0
    memory: InvariantState = field(default_factory=InvariantState)
    steps: list[Step] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best: tuple[float, int] | None = None
    health: list[Health] = field(default_factory=list)
    violation: tuple[str, str] | None = None
    checks_run: Counter[str] = field(default_factory=Counter)  # how often each rule was held against something
    reported: set[str] = field(default_factory=set)            # gates of windows that were reported as failed
    began: float = 0.0          # monotonic clock at step 0 of this process
    _mark: float = 0.0
    _sampled: float = 0.0
    _files: dict[str, Lines] = field(default_factory=dict)

    def run(self) -> tuple[str, str]:
        """Train to the end of the plan; returns the status and the sentence that says why it ended."""
        self.began, self._mark = time.monotonic(), time.perf_counter()
        try:
            while self.steps_done < self.plan.steps:
                self._pause()
                wants_stop = self._step()
                ends_epoch = self.steps_done % self.plan.steps_per_epoch == 0 or self.steps_done == self.plan.steps
                if self.violation is None and ends_epoch:
                    self._validate()
                due = self.steps_done % self.plan.checkpoint_every == 0 or self.steps_done == self.plan.steps
                if due or wants_stop or self.violation is not None or self.controls.save.is_set():
                    self.controls.save.clear()
                    self._save()
                if self.violation is not None:
                    return ABORTED, f"{self.violation[0]}: {self.violation[1]}"
                if wants_stop and self.steps_done < self.plan.steps:
                    done = f"{self.steps_done} of {self.plan.steps} steps"
                    return INTERRUPTED, f"stopped after {done}; go on with --resume --out {self.out}"
            return DONE, f"{self.plan.steps} steps done"
        finally:
            for lines in self._files.values():
                lines.close()

    def restore(self, saved: State) -> None:
        """Take up a checkpoint: weights, moments, cursor, what the rules remember."""
        load_values(self.stepper.model, saved.weights)
        load_moments(self.stepper.model, self.stepper.optimizer, saved.moments)
        state = saved.state
        self.steps_done, self.tokens_seen = state["steps_done"], state["tokens_seen"]
        memory = state["memory"]
        self.memory = InvariantState(tuple(memory["last"]) if memory["last"] else None, memory["cursor"],
                                     memory["data_epoch"],
                             set(memory["hashes"]))
        self.best = tuple(state["best"]) if state["best"] else None

    def rows(self, tokens: Tokens) -> Tensor:
        """This process's rows of a batch, on the device."""
        return self._placed(tokens[self.world.rank :: self.world.size])

    def _placed(self, tokens: Tokens) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(self.stepper.device, non_blocking=True)

    def _wants_stop(self) -> bool:
        return self.cancelled() or self.controls.stop.is_set()

    def _pause(self) -> None:
        """Wait while pause is set; only a run of one process can."""
        if self.world.size == 1 and self.controls.pause.is_set():
            self.emit(Phase("paused"))
            while self.controls.pause.is_set() and not self._wants_stop():
                time.sleep(PAUSE_S)
            self._rest()

    def _step(self) -> bool:
        """Take one step, hold it against the rules, log it; returns whether somebody wants to stop."""
        step, cursor = self.steps_done, self.memory.cursor
        tokens, with_table = self.order.batch(cursor, self.plan.batch), step % self.plan.grads_every == 0
        measured = self.stepper.take_step(
            step, self.rows(tokens), learning_rate(self.plan, step), with_table, self._wants_stop())
        observed = StepObservation(self.plan, step, measured, batch_hash(tokens), cursor,
                                   cursor // len(self.order.windows), step == 0)
        self.violation = first_violation(observed, self.memory)
        self.checks_run.update(rules_checked(observed, self.violation[0] if self.violation else None))
        if measured.is_finite:
            remember(observed, self.memory)
            self.steps_done += 1
            self.tokens_seen += self.plan.step_tokens
            self._log(measured, observed)
        return measured.wants_stop

    def _log(self, measured: Measured, observed: StepObservation) -> None:
        now = time.perf_counter()
        wall, self._mark = now - self._mark, now
        sample = self.sampler.latest if self.sampler else None
        record = Step(
            observed.step, measured.loss, measured.grad_norm, measured.lr, self.plan.step_tokens / wall, wall * 1000,
            sample.util_pct if sample else None, sample.memory_mib if sample else None, self.tokens_seen,
            measured.clipped_norm, self.memory.cursor, observed.batch_hash,
            (time.monotonic() - sample.at) * 1000 if sample else None)
        self.steps.append(record)
        self._write(TRAIN, record)
        if sample is not None and sample.at != self._sampled:
            self._sampled = sample.at
            self._write(GPU, {"step": observed.step, **asdict(sample)})
        if measured.grads is not None:
            self._write(GRADS, measured.grads)
            self.health += [measured.grads.health] if measured.grads.health is not None else []
        self.emit(StepTaken(record, measured.grads))

    def _validate(self) -> None:
        loss = self.stepper.validate(self._placed(self.windows), self.plan.batch)  # all of them in each process
        if self.world.size > 1:  # the same number for all, so that all decide alike
            loss = float(self.world.sum_up(torch.tensor(loss, device=self.stepper.device))) / self.world.size
        since = self.validations[-1].steps_done if self.validations else 0
        losses = [s.train_loss for s in self.steps if s.step >= since]
        record = Validation(
            epoch=-(-self.steps_done // self.plan.steps_per_epoch) - 1, steps_done=self.steps_done, val_loss=loss,
            train_loss=sum(losses) / len(losses) if losses else None, n_tokens=self.windows.size - len(self.windows),
            tokens_seen=self.tokens_seen)
        self.validations.append(record)
        self._write(VAL, record)
        self.emit(Validated(record))
        sentence = diverged(self.plan, self.validations[-2:] if len(self.validations) > 1 else self.validations)
        if sentence is not None:
            self.violation = ("GATE-TRAIN-005", sentence)
        for gate in judge_windows(self.plan, self.steps, self.health):
            if gate.verdict == FAIL and gate.id not in self.reported:
                self.reported.add(gate.id)
                self.emit(Note(f"{gate.id}: {gate.measured}"))
        if sentence is None and (self.best is None or loss < self.best[0]):
            self.best = (loss, self.steps_done)
        self._rest()

    def _save(self) -> None:
        """Write a checkpoint, unless the weights hold NaN or Inf, it is there already, or the run keeps none."""
        self.checks_run["INV-CENSUS"] += 1
        sentence = not_finite(census(self.stepper.named), self.steps_done - 1)
        if sentence is not None:
            self.violation = self.violation or ("INV-CENSUS", sentence)
        if sentence is not None or not self.keeps:
            self._rest()
            return
        weights = gather(self.stepper.model.state_dict())
        moments = gather(moments_of(self.stepper.model, self.stepper.optimizer))
        if self.world.is_first and self.steps_done not in dict(checkpoints(self.out)):
            state = {
                "steps_done": self.steps_done, "cursor": self.memory.cursor, "tokens_seen": self.tokens_seen,
                "memory": {**asdict(self.memory), "hashes": sorted(self.memory.hashes)}, "best": self.best}
            path = write_checkpoint(
                self.out, self.steps_done, State(weights, moments, state), self.plan.arch, self.vocabulary,
                self.best[1] if self.best else None, f"{self.plan.config} after {self.steps_done} steps")
            self.emit(CheckpointWritten(path))
        self.world.wait()
        self._rest()

    def _rest(self) -> None:
        """Begin the next step's time here: what was just done is no part of a step."""
        if self.stepper.device.type == "cuda":
            torch.cuda.synchronize()
        self._mark = time.perf_counter()

    def _write(self, name: str, record: object) -> None:
        if self.world.is_first:
            self._files.setdefault(name, Lines(self.out / name)).write(record)


def facts_of_residency(trainer: Trainer, device_index: int) -> dict[str, Any]:
    """Say what GPU memory this process was seen to hold, how long after step 0 began, or why that is not known."""
    sampler = trainer.sampler
    if sampler is None:
        return {"why_not": "no GPU in this run"}
    own = sampler.first_own
    if own is None:
        listed = sampler.latest.n_listed if sampler.latest else None
        observed = "no processes to us" if listed is None else (
            f"{listed} processes, none with this process's id and its memory (a container hides them)")
        return {"why_not": sampler.why_not or f"NVML lists {observed}"}
    if not trainer.began:
        return {"why_not": "no step was begun"}
    seconds = max(0.0, own.at - trainer.began)
    ends = itertools.accumulate(s.wall_ms / 1000 for s in trainer.steps)
    return {"pid": os.getpid(), "device_index": device_index, "used_memory_mib": own.own_mib,
            "sampled_at_step": sum(end <= seconds for end in ends), "seconds": seconds}
