"""Write and read a run's folder: one flushed JSON line for each step, and documents that are whole or the old ones.

    run.json     plan, device, versions, command, status           train.jsonl  one line a step
    val.jsonl    one line a validation                             grads.jsonl  one line every grads_every steps
    gpu.jsonl    NVML samples, where there is a GPU                gates.json   the gates, with verdicts
    gpu_residency.csv   what NVML says that this process holds     (nvidia-smi.csv in older runs, NVML's as well)
A line that was cut by a kill is not a record: readers stop before it, a resume drops it.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from core.system.atomic_file import atomic_file
from core.system.errors import FileError, OutputError
from core.system.json_text import from_json, to_json
from core.system.limits import DOCUMENT_BYTES, LINE_BYTES, LOG_BYTES
from core.system.outcome import Gate
from core.system.regular_file import open_file, read_text
from core.train.records import Health

RUN, TRAIN, VAL, GRADS, GPU, GATES = "run.json", "train.jsonl", "val.jsonl", "grads.jsonl", "gpu.jsonl", "gates.json"
RESIDENCY = "gpu_residency.csv"
NVML_CALL = "NVML nvmlDeviceGetComputeRunningProcesses"  # what the figures of RESIDENCY come from
SUPERSEDED = "train.superseded.jsonl"
SCHEMA = "apr-tui-train/1"
T = TypeVar("T")
_DAMAGED = "The run's log is damaged; put the file back as it was."


class Lines:
    """An open .jsonl file; each record reaches the operating system before write returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def write(self, record: object) -> None:
        """Append one record; OutputError."""
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path} could not be written: {error.strerror}. The steps before are kept; "
                              f"free some space and go on with --resume --out {self._path.parent}.") from error

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()


def write_document(path: Path, value: object) -> None:
    """Write a JSON document, whole or not at all; OutputError."""
    _replace_text(path, to_json(value, indent=1) + "\n")


def _replace_text(path: Path, text: str) -> None:
    try:
        with atomic_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror}. Free some space.") from error


def write_residency(run: Path, seen: Mapping[str, Any]) -> None:
    """Write the GPU memory that this process was seen to hold, and who saw it; nothing where none was; OutputError."""
    if not seen.get("used_memory_mib"):
        return
    try:
        with (run / RESIDENCY).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("pid", "process_name", "used_gpu_memory [MiB]", "source"))
            writer.writerow((seen["pid"], sys.executable, f"{seen['used_memory_mib']:.0f}", NVML_CALL))
    except OSError as error:
        raise OutputError(f"{run / RESIDENCY} could not be written: {error.strerror}. Free some space.") from error


def read_document(path: Path) -> Any:  # noqa: ANN401 (a document is any value)
    """Read a JSON document; FileError."""
    repair = "Give the folder of a training run."
    return from_json(read_text(path, DOCUMENT_BYTES, repair), str(path), repair)


class Tail:
    """Read a growing .jsonl file: each call returns the whole lines that are new since the last."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def read(self) -> tuple[list[Any], bool]:
        """Return new documents, and whether the file began anew (a resume rewrote it); FileError for a damaged line."""
        if not os.path.lexists(self._path):
            return [], False
        rows = list[Any]()
        with open_file(self._path, LOG_BYTES, _DAMAGED) as file:
            began_anew = os.fstat(file.fileno()).st_size < self._at
            self._at = 0 if began_anew else self._at
            file.seek(self._at)
            while (line := file.readline(LINE_BYTES)).endswith(b"\n"):
                self._at += len(line)
                rows.append(from_json(line, f"a line of {self._path}", _DAMAGED))
            if len(line) == LINE_BYTES:
                raise FileError(f"{self._path} has a line of more than {LINE_BYTES} bytes. {_DAMAGED}")
        if not all(isinstance(row, dict) for row in rows):
            raise FileError(f"{self._path} has a line that is no JSON object. {_DAMAGED}")
        return rows, began_anew


@contextmanager
def reading_records(run: Path) -> Iterator[None]:
    """Turn what a record of another form raises while it is read into a FileError that names the run."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise FileError(f"{run} holds a record that no run writes ({error!r}). {_DAMAGED}") from error


def read_lines(path: Path) -> list[Any]:
    """Read every whole line of a .jsonl file; none where there is no file."""
    return Tail(path).read()[0]


def rewind(run: Path, steps_done: int) -> int:
    """Cut the logs of a run back to so many steps for a resume; what is cut stays in train.superseded.jsonl.

    Returns how many steps were cut: they are trained again from the checkpoint, on the same batches.
    """
    limits = ((TRAIN, "step", steps_done - 1), (GRADS, "step", steps_done - 1), (VAL, "steps_done", steps_done))
    logged = {name: read_lines(run / name) for name, _, _ in limits}
    with reading_records(run):
        kept = {name: [row for row in logged[name] if row[key] <= last] for name, key, last in limits}
        cut = [row for row in logged[TRAIN] if row["step"] >= steps_done]
    if cut:
        _write_lines(run / SUPERSEDED, [*read_lines(run / SUPERSEDED), *cut])
    for name, rows in kept.items():
        if (run / name).is_file():
            _write_lines(run / name, rows)
    return len(cut)


def read_record(kind: type[T], row: object) -> T:
    """Read a record back, as read_health inside reading_records; nan and inf stand in the file as strings."""
    return msgspec.convert(row, kind, strict=False)


def read_health(row: Mapping[str, Any]) -> Health | None:
    """Read what a gradient table says of its step; None for one of a build that did not measure it."""
    return read_record(Health, row["health"]) if row.get("health") is not None else None


def read_gates(run: Path) -> tuple[Gate, ...]:
    """Read gates.json; none where it is not written yet."""
    if not (run / GATES).is_file():
        return ()
    return tuple(read_record(Gate, row) for row in read_document(run / GATES)["gates"])


def _write_lines(path: Path, rows: Iterable[object]) -> None:
    with reading_records(path.parent):  # ValueError: a number beyond what a float holds
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    _replace_text(path, text)
