"""Judge a run by the published gates: a table of id, rule, measured value, verdict, evidence. It ends no run.

A gate that saw no data says NOT_MEASURED, which is neither a pass nor a failure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate, Outcome
from core.train.config import MODES, Plan
from core.train.records import Step, Validation

GROWTH_LIMIT = 2.0                 # val_loss may be twice the last epoch's, and no more
TIMED = range(20, 50)              # steps whose wall_ms is judged
WARM_STEPS = 10                    # steps before utilisation is looked at
RESIDENCY_S = 5.0
METRICS = ("train_loss", "grad_norm", "lr", "tokens_per_sec", "wall_ms")
GPU_METRICS = ("gpu_util_pct", "gpu_mem_mib")
BUDGETS = (  # config, part of the device's name, tokens a step, ms
    ("370m", "H200", 8192, 47.0),   # half of the bf16 matmul rate
    ("370m", "4090", 2048, 500.0),  # the published budget: sequence 2048, batch 1
)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run knows of itself when the gates are judged. violation: rule id and sentence of what ended it."""

    plan: Plan
    device: str
    device_wanted: str
    device_name: str
    steps: Sequence[Step] = field(repr=False)
    validations: Sequence[Validation]
    violation: tuple[str, str] | None = None
    residency: Mapping[str, Any] | None = None  # pid, used_memory_mib, seconds ..; or why_not
    golden_difference: float | None = None
    golden_tolerance: float = 0.0
    budget_ms: float | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the run is on a GPU."""
        return self.device.startswith("cuda")


Judged = tuple[str, Outcome]  # measured, verdict
Judge = Callable[[RunFacts], Judged]


def explicit_device(facts: RunFacts) -> Judged:
    """Hold the device asked for against the one that ran."""
    if not facts.device_wanted.startswith("cuda"):
        return f"--device {facts.device_wanted}: no CUDA device was named", NOT_MEASURED
    return f"asked {facts.device_wanted}, ran on {facts.device}", PASS if facts.on_gpu else FAIL


def residency(facts: RunFacts) -> Judged:
    """Hold GPU memory under the own process id, and GPU work in most steps."""
    if not facts.on_gpu:
        return "no GPU in this run", NOT_MEASURED
    seen = facts.residency or {}
    if seen.get("used_memory_mib") is None:
        return str(seen.get("why_not", "no sample of this process")), NOT_MEASURED
    late = seen["seconds"] > RESIDENCY_S
    used = [s.gpu_util_pct for s in facts.steps[WARM_STEPS:] if s.gpu_util_pct is not None]
    idle = bool(used) and sum(u > 0 for u in used) < len(used) / 2
    text = f"pid {seen['pid']} holds {seen['used_memory_mib']:.0f} MiB, {seen['seconds']:.1f} s after step 0 began"
    if used:
        text += f"; busy in {sum(u > 0 for u in used)} of {len(used)} steps"
    return text, FAIL if late or idle or seen["used_memory_mib"] <= 0 else PASS


def step_time(facts: RunFacts) -> Judged:
    """Hold the median step time against the budget of this config on this device."""
    times = [s.wall_ms for s in facts.steps if s.step in TIMED]
    budget = facts.budget_ms or next(
        (ms for config, name, tokens, ms in BUDGETS if config == facts.plan.config and name in facts.device_name
         and tokens == facts.plan.step_tokens), None)
    if not times:
        return f"no step of {TIMED.start}..{TIMED.stop - 1} was taken", NOT_MEASURED
    text = (f"steps {TIMED.start}..{TIMED.start + len(times) - 1}: min {min(times):.2f}, median "
            f"{statistics.median(times):.2f}, max {max(times):.2f} ms")
    if budget is None:
        return f"{text}; no budget is set for {facts.plan.config} on {facts.device_name}", NOT_MEASURED
    if len(times) < len(TIMED):
        return f"{text}; {len(times)} of {len(TIMED)} steps, budget {budget:g} ms", NOT_MEASURED
    return f"{text}; budget {budget:g} ms", PASS if statistics.median(times) < budget else FAIL


def cpu_path(facts: RunFacts) -> Judged:
    """Hold the losses of the golden run against those committed."""
    found = facts.golden_difference
    if found is None:
        return "the golden run was left out", NOT_MEASURED
    text = f"largest difference {found:.2g} nats, allowed {facts.golden_tolerance:g}"
    return text, _verdict(found <= facts.golden_tolerance)


def records_are_whole(facts: RunFacts) -> Judged:
    """Hold every step to be there once, with every figure."""
    if not facts.steps:
        return "no step was taken", NOT_MEASURED
    numbers = [s.step for s in facts.steps]
    if numbers != list(range(len(numbers))):
        return f"{len(numbers)} records, but not steps 0 to {len(numbers) - 1}, each once", FAIL
    on_gpu = GPU_METRICS if facts.on_gpu else ()
    untold = tuple(n for n in on_gpu if all(getattr(s, n) is None for s in facts.steps))  # by a slice of a GPU
    if on_gpu and untold == on_gpu:
        why = (facts.residency or {}).get("why_not", "the driver does not say")
        return f"{len(numbers)} steps; no GPU figure was to be had: {why}", NOT_MEASURED
    names = tuple(n for n in METRICS + on_gpu if n not in untold)
    missing = [(s.step, n) for s in facts.steps for n in names if not _is_number(getattr(s, n))]
    if missing:
        return f"{len(missing)} figures are missing, first {missing[0][1]} of step {missing[0][0]}", FAIL
    if untold:
        return f"{len(numbers)} steps; the driver tells no {' and no '.join(untold)}", NOT_MEASURED
    return f"{len(numbers)} steps with {len(names)} figures each", PASS


def validation_holds(facts: RunFacts) -> Judged:
    """Hold the validation losses against the first one's cap and each other."""
    if not facts.validations:
        return "no validation was reached", NOT_MEASURED
    sentence = diverged(facts.plan, facts.validations)
    last = facts.validations[-1]
    text = f"val_loss {last.val_loss:.4f} after epoch {last.epoch}; cap {facts.plan.cap:.2f}"
    return sentence or text, _verdict(sentence is None)


def figures_are_finite(facts: RunFacts) -> Judged:
    """Hold loss and gradient norm to be finite at every step."""
    if facts.violation is not None and facts.violation[0] == "INV-FINITE":
        return facts.violation[1], FAIL
    return (f"{len(facts.steps)} steps", PASS) if facts.steps else ("no step was taken", NOT_MEASURED)


def figures_are_possible(facts: RunFacts) -> Judged:
    """Hold throughput to be 0 or more, utilisation from 0 to 100."""
    if not facts.steps:
        return "no step was taken", NOT_MEASURED
    bad = [s.step for s in facts.steps if not s.tokens_per_sec >= 0 or not 0 <= (s.gpu_util_pct or 0) <= 100]
    rates = [s.tokens_per_sec for s in facts.steps]
    text = f"{min(rates):.0f} to {max(rates):.0f} tokens a second"
    if facts.on_gpu and all(s.gpu_util_pct is None for s in facts.steps):
        text += "; utilisation not measured"
    return (f"step {bad[0]} has impossible figures", FAIL) if bad else (text, PASS)


def mode_is_whole(facts: RunFacts) -> Judged:
    """Hold the cap, the target and the start to be those of one mode."""
    plan, row = facts.plan, MODES[facts.plan.mode]
    cap = row.cap or 2 * math.log(plan.arch.n_vocab)
    starts_right = (plan.init is not None) == (plan.mode == "finetune")
    text = (f"{plan.mode}: lr {plan.lr:g}, warm-up {plan.warm_up}, cap {plan.cap:.2f}, "
            f"target {plan.target_val_loss:g}, {'random weights' if plan.init is None else 'weights of a file'}")
    return text, _verdict(starts_right and plan.cap == cap and plan.target_val_loss == row.target_val_loss)


GATES: tuple[tuple[str, str, Judge, str], ...] = (
    ("GATE-GPUTRAIN-002", "an explicit cuda that is absent fails in 2 s, never a silent CPU", explicit_device,
     "run.json"),
    ("GATE-GPUTRAIN-003", "the own process holds GPU memory within 5 s of step 0", residency, "gpu_residency.csv"),
    ("GATE-GPUTRAIN-004", "median wall_ms of steps 20..49 is under its budget", step_time, "train.jsonl"),
    ("GATE-GPUTRAIN-005", "same seed on the CPU, same losses as the golden run", cpu_path, "run.json"),
    ("GATE-TRAIN-001", "every step is recorded once with every figure", records_are_whole, "train.jsonl"),
    ("GATE-TRAIN-005", "val_loss stays under its cap and twice the last epoch's", validation_holds, "val.jsonl"),
    ("GATE-TRAIN-007", "no NaN or Inf in loss or gradient norm", figures_are_finite, "train.jsonl"),
    ("GATE-TRAIN-008", "throughput is 0 or more, utilisation 0 to 100", figures_are_possible, "train.jsonl"),
    ("GATE-TRAIN-009", "the mode sets rate, warm-up, target and cap together", mode_is_whole, "run.json"),
)


def judge(facts: RunFacts) -> tuple[Gate, ...]:
    """Return every gate with its verdict."""
    return tuple(Gate(id, rule, *judge_one(facts), evidence) for id, rule, judge_one, evidence in GATES)


def diverged(plan: Plan, validations: Sequence[Validation]) -> str | None:
    """Return the sentence of a validation that breaks GATE-TRAIN-005; equal to twice the last is allowed."""
    for i, seen in enumerate(validations):
        if not math.isfinite(seen.val_loss):
            return f"val_loss of epoch {seen.epoch} is {seen.val_loss}"
        if i == 0 and seen.val_loss > plan.cap:
            return f"val_loss {seen.val_loss:.4f} of epoch {seen.epoch} is above {plan.mode}'s cap of {plan.cap:.2f}"
        if i and seen.val_loss > GROWTH_LIMIT * validations[i - 1].val_loss:
            last = validations[i - 1].val_loss
            return (f"val_loss {seen.val_loss:.4f} of epoch {seen.epoch} is {seen.val_loss / last:.2f} x the epoch "
                    f"before ({last:.4f})")
    return None


def _verdict(holds: bool) -> Outcome:
    return PASS if holds else FAIL


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
