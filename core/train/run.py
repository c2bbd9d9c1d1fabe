"""Resolve a run's options, then train. It prints nothing.

torch is imported after the device, the plan, the folder and the files have been held to what they must be.
"""

from __future__ import annotations

import os

from core.system.cancel import IsCancelled, never
from core.system.errors import AprError, system_error
from core.system.gpu_errors import device_error
from core.system.progress import Phase
from core.train.config import TrainOptions
from core.train.events import Note, TrainEmit, no_train_emit
from core.train.prepare import is_first, prepare, read_corpus
from core.train.records import RunControls, TrainResult
from core.train.run_document import note_failure


def train(
    options: TrainOptions, emit: TrainEmit = no_train_emit, cancelled: IsCancelled = never,
    controls: RunControls | None = None,
) -> TrainResult:
    """Train; cancelled() ends the run after the step in flight, with a checkpoint. Errors as prepare, and Cancelled."""
    prepared = prepare(options)
    tell = emit if is_first() else no_train_emit
    for note in (f"device {prepared.device}: {prepared.reason}", *prepared.plan.reasons):
        tell(Note(note))
    # else the first process makes the shards, once the process group is formed
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    corpus = read_corpus(prepared, tell, cancelled) if alone else None
    tell(Phase("loading torch"))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from core.train.runner import run_training  # it imports torch

    try:
        return run_training(prepared, corpus, tell, cancelled, controls or RunControls())
    except AprError as error:
        note_failure(options.out, error)
        raise
    except OSError as error:
        refused = device_error(error) or system_error(error)
        note_failure(options.out, refused)
        raise refused from error
