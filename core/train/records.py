"""Records of a training run: one step, one validation, the run as a reader sees it. Not the files: log.py.

A figure that nobody measured is None: gpu figures on a CPU, a verdict without data.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.system.outcome import FAIL, Gate

RUNNING, DONE, ABORTED, INTERRUPTED, FAILED = "RUNNING", "DONE", "ABORTED", "INTERRUPTED", "FAILED"


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. grad_norm: global L2 norm before clipping. cursor: windows of the data order used so far.

    wall_ms: from the end of the step before (or of a pause for validation or a checkpoint) to the end of this one.
    gpu_*: the newest NVML sample and its age.
    """

    step: int
    train_loss: float
    grad_norm: float
    lr: float
    tokens_per_sec: float
    wall_ms: float
    gpu_util_pct: float | None
    gpu_mem_mib: float | None
    tokens_seen: int
    clipped_norm: float
    cursor: int
    batch_hash: str
    gpu_age_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """The mean loss over the held-out windows at an epoch's end. steps_done: optimizer steps before it."""

    epoch: int
    steps_done: int
    val_loss: float
    train_loss: float | None  # mean over the epoch
    n_tokens: int
    tokens_seen: int


@dataclass(frozen=True, slots=True)
class GradRow:
    """Gradient statistics of one layer, None for what stands outside the layers.

    grad_norm: L2, before clipping. update_ratio: |new - old| / |old| of its weights. zero_share: of exact zeros.
    """

    layer: int | None
    grad_norm: float
    update_ratio: float | None
    zero_share: float


@dataclass(frozen=True, slots=True)
class Health:
    """What a statistics step says of itself beside its gradients.

    headroom_bits: what its largest value may still grow before the type in use overflows; headroom_at: where that is.
    noise_power, signal_power: tr(Sigma) and |G|^2 of one sequence's gradient; None below two sequences a step.
    """

    step: int
    headroom_bits: float | None = None
    headroom_at: str = ""
    noise_power: float | None = None
    signal_power: float | None = None


@dataclass(frozen=True, slots=True)
class Grads:
    """The gradient table of one step. parameters: name -> (grad_norm, update_ratio, zero_share)."""

    step: int
    rows: tuple[GradRow, ...]
    parameters: Mapping[str, tuple[float, float | None, float]] = field(repr=False)
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class RunControls:
    """Requests to a run under way, set from another thread: stop after this step, wait, save a checkpoint."""

    stop: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    save: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended: status, the sentence that says why, its gates, and where its newest checkpoint is."""

    status: str
    sentence: str
    out: Path
    steps_done: int
    final_train_loss: float | None
    final_val_loss: float | None
    gates: tuple[Gate, ...]
    checkpoint: Path | None

    @property
    def exit_code(self) -> int:
        """0 done with no failed gate, 1 aborted or a failed gate, 130 interrupted."""
        if self.status == INTERRUPTED:
            return 130
        return int(self.status != DONE or any(gate.verdict == FAIL for gate in self.gates))


@dataclass(frozen=True, slots=True)
class RunView:
    """A run's folder as read by anyone, while it is written or after. last_step_age_s: None before the first step.

    alive: whether its process is there, None where that cannot be told (another machine).
    """

    out: Path
    status: str
    sentence: str
    run: Mapping[str, Any]
    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]
    grads: Grads | None
    gates: tuple[Gate, ...]
    gpu: Mapping[str, Any] | None
    checkpoint: Path | None
    last_step_age_s: float | None
    alive: bool | None
    health: tuple[Health, ...] = ()
