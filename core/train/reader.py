"""Read a training run's folder while another process writes it, without a lock or torch. It changes nothing."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.system.errors import FileError
from core.system.limits import LAYERS
from core.system.rests import began
from core.train.log import (
    GPU,
    GRADS,
    RUN,
    TRAIN,
    VAL,
    Tail,
    read_document,
    read_gates,
    read_health,
    read_record,
    reading_records,
)
from core.train.records import RUNNING, Grads, Health, RunView, Step, Validation

CHECKPOINTS = "ckpt"
GPU_FIELDS = ("util_pct", "memory_mib", "power_w", "temperature_c")
CLOCK_S = 60.0    # by which the wall clock may have been set since


class RunReader:
    """A run that is followed: each view reads only what is new in its logs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._tails = {name: Tail(out / name) for name in (TRAIN, VAL, GRADS, GPU)}
        self._steps: list[Step] = []
        self._validations: list[Validation] = []
        self._grads: Grads | None = None
        self._health: list[Health] = []
        self._gpu: Mapping[str, Any] | None = None

    def view(self) -> RunView:
        """Return the run as it is now; FileError where the folder is none."""
        if not os.path.isfile(self.out / RUN):
            raise FileError(f"{self.out} has no {RUN}; it is not the folder of a training run.")
        run = read_document(self.out / RUN)
        if not _is_run(run):
            raise FileError(f"{self.out / RUN} is no training run. Give the folder of one.")
        with reading_records(self.out):
            self._read()
            return RunView(
                self.out, run["status"], run["sentence"], run, tuple(self._steps), tuple(self._validations),
                self._grads, read_gates(self.out), self._gpu, newest_checkpoint(self.out), self._age(), is_alive(run),
                tuple(self._health))

    def _read(self) -> None:
        rows, began_anew = self._tails[TRAIN].read()
        if began_anew:
            self._steps.clear()
        self._steps += [read_record(Step, row) for row in rows]
        rows, began_anew = self._tails[VAL].read()
        if began_anew:
            self._validations.clear()
        self._validations += [read_record(Validation, row) for row in rows]
        rows, began_anew = self._tails[GRADS].read()
        if began_anew:
            self._health.clear()
        self._health += [health for row in rows if (health := read_health(row)) is not None]
        for row in rows[-1:]:
            self._grads = read_record(Grads, row)
        for row in self._tails[GPU].read()[0][-1:]:
            self._gpu = {**row, **{name: _shown(row[name]) for name in GPU_FIELDS}}

    def _age(self) -> float | None:
        """Seconds since the newest step reached the log."""
        if not self._steps:
            return None
        try:
            return max(0.0, time.time() - (self.out / TRAIN).stat().st_mtime)
        except OSError:
            return None


def open_run(folder: Path) -> RunView:
    """Read a run's folder once; RunReader follows one."""
    return RunReader(folder).view()


def _shown(value: object) -> float | None:
    """A sample's number, None where the driver does not say; TypeError for anything else."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r:.80} is no sample of a GPU")


def _is_run(run: Any) -> bool:  # noqa: ANN401 (a document is any value)
    """Say whether a document is a run.json that a screen can show."""
    try:
        plan = run["plan"]
        words = (run["status"], run["sentence"], run["device"], plan["config"])
        sizes = (plan["steps"], plan["batch"], plan["seq"], plan["seed"], plan["arch"]["n_layer"])
        tables = (run.get("residency") or {}, run.get("corpus") or {})
    except (AttributeError, KeyError, TypeError):
        return False
    return (all(isinstance(word, str) for word in words) and all(isinstance(table, dict) for table in tables)
            and all(type(size) is int and size >= 0 for size in sizes) and sizes[-1] <= LAYERS)


def newest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none."""
    folder = out / CHECKPOINTS
    names = sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []
    return max(names, key=lambda p: (len(p.name), p.name), default=None)


def is_alive(run: Mapping[str, Any]) -> bool | None:
    """Whether the run's process is there; None where another machine wrote it, False once it has ended."""
    if run["status"] != RUNNING:
        return False
    if run.get("host") != platform.node() or not isinstance(run.get("pid"), int):
        return None
    try:
        os.kill(run["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return _is_the_run(run)


def _is_the_run(run: Mapping[str, Any]) -> bool:
    """Whether the process of this id is the one that wrote run.json: no later process with the same id."""
    written = max([run.get("started", math.inf), *(resume["at"] for resume in run.get("resumes", ()))])
    try:
        started = began(run["pid"])
    except LookupError:  # no Linux: the id is all there is
        return True
    return started is not None and started <= written + CLOCK_S
