"""Run another engine on a model in a child process and read back its stage values. It measures and judges nothing.

The child (child.py) reads ask.json in a folder and writes values.safetensors, then answer.json. What it prints
goes to log.txt, whose last line becomes the words of an error; what it writes to progress.txt is a sign of life. The
child is ended, and the folder is gone, whatever happens here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.model.stages import Place, place_text
from core.system.arrays import Floats32
from core.system.atomic_file import atomic_file
from core.system.cancel import IsCancelled
from core.system.child import Child, child_environment, start_apart
from core.system.errors import Cancelled, FileError, UsageError, os_reason
from core.system.limits import DOCUMENT_BYTES
from core.system.progress import Phase
from core.system.regular_file import read_file
from core.system.safe_text import safe_text
from core.trace.engines import ENGINES, Engine
from core.trace.events import Emit
from core.trace.values_file import open_values

ASK, ANSWER, VALUES, LOG, PROGRESS = "ask.json", "answer.json", "values.safetensors", "log.txt", "progress.txt"
PATIENCE = 600.0  # seconds without a line of progress, after which an engine hangs: loading a 7B file takes two minutes
POLL_SECONDS = 0.05
TAIL_BYTES = 64 << 10  # of a log
LAST_LINE_CHARACTERS = 300  # characters

Values = dict[Place, Floats32]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a child is to run. layers: A..B in depth (None: all); the residual stream is taken of every layer.

    layers_of: a GGUF or .apr file whose layers it has, where its path is a folder. cache: TYPE or K/V of its KV cache.
    """

    path: str
    tokens: tuple[int, ...]
    threads: int | None = None
    layers: tuple[int, int] | None = None
    device: str = "cpu"
    witness: bool = True
    layers_of: str | None = None
    cache: str = "f32"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child says of its run, beside the values: its capture contract. same_logits: None where no witness ran."""

    engine: str
    compute: str
    dtype: str
    arch: str
    n_layer: int
    d_model: int
    n_vocab: int
    tokens: tuple[int, ...]
    threads: int
    device: str
    kernel: str
    same_logits: bool | None = None
    notes: tuple[str, ...] = ()


def find_engine(scheme: str) -> Engine:
    """Return the engine of a scheme; UsageError with the install line where a package is absent."""
    engine = ENGINES[scheme]
    absent = [name for name in engine.packages if importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(f"{scheme} as a source needs the Python package {absent[0]}, which is not installed. "
                         f"Install it: {engine.install}")
    return engine


def run_engine(
    scheme: str, ask: Ask, *, emit: Emit, cancelled: IsCancelled, patience: float = PATIENCE
) -> tuple[Answer, Values]:
    """Run the engine on what is asked; FileError with the last line of its log where it crashes, hangs or answers
    nonsense.
    """
    engine = find_engine(scheme)
    emit(Phase(f"running {scheme}"))
    with tempfile.TemporaryDirectory(prefix="apr-tui-") as name:
        folder = Path(name)
        (folder / ASK).write_text(json.dumps(asdict(ask)))
        with (folder / LOG).open("wb") as log:
            child = start_apart((*engine.command, scheme, name), log, _environment(ask))
        try:
            _wait(child, folder, scheme, patience, emit, cancelled)
        finally:
            _end(child)
        return _read_answer(folder, scheme), _read_values(folder, scheme, len(ask.tokens))


def _environment(ask: Ask) -> dict[str, str]:
    """The child's environment: no network, and the threads that were asked for."""
    threads = {"OMP_NUM_THREADS": str(ask.threads)} if ask.threads else {}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {"OMP_WAIT_POLICY": "PASSIVE", **child_environment(**offline, **threads)}


def _wait(child: Child, folder: Path, scheme: str, patience: float, emit: Emit, cancelled: IsCancelled) -> None:
    """Wait for the child's good end; every line of progress renews its time."""
    seen, alive = 0, time.monotonic()
    while child.poll() is None:
        if cancelled():
            raise Cancelled("the run was cancelled")
        if time.monotonic() - alive > patience:
            raise FileError(f"{scheme} hangs: no sign of life for {patience:g} seconds, so it was ended. "
                            f"Its last words: {_last_line(folder)}")
        told = _lines_since(folder / PROGRESS, seen)
        for line in told.decode(errors="replace").splitlines():
            emit(Phase(f"{scheme}: {safe_text(line)}"))
        if told:
            seen, alive = seen + len(told), time.monotonic()
        time.sleep(POLL_SECONDS)
    if child.returncode != 0:
        raise FileError(f"{scheme} {_ending(child.returncode)}. Its last words: {_last_line(folder)}")


def _end(child: Child) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(code: int) -> str:
    if code > 0:
        return f"failed (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def _last_line(folder: Path) -> str:
    """The last line of its log that says something."""
    lines = last_lines(folder / LOG)
    said = [line.strip() for line in lines if line.strip()]
    return safe_text(said[-1][:LAST_LINE_CHARACTERS]) if said else "none"


def last_lines(log: Path) -> list[str]:
    """The last lines of a log, which may be long; none where there is no file."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode(errors="replace").splitlines()


def _lines_since(path: Path, seen: int) -> bytes:
    """The whole lines of a growing file after so many bytes; nothing where it is not there yet."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(seen)
        told = file.read(TAIL_BYTES)
    return told[: told.rfind(b"\n") + 1]


def _read_answer(folder: Path, scheme: str) -> Answer:
    try:
        answer = msgspec.json.decode(read_file(folder / ANSWER, DOCUMENT_BYTES, ""), type=Answer)
    except (FileError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(f"{scheme} ended without a readable answer ({os_reason(error)}). "
                        f"Its last words: {_last_line(folder)}") from error
    if not answer.tokens:
        raise FileError(f"{scheme} answered with no tokens; the ids that it ran were needed.")
    return answer


def _read_values(folder: Path, scheme: str, n_token: int) -> Values:
    """Read every stage into memory, as float32; a stage is [rows, width], with a row for each of the last tokens."""
    if not (folder / VALUES).exists():
        raise FileError(f"{scheme} ended without values. Its last words: {_last_line(folder)}")
    stored = open_values(folder / VALUES)
    values = {place: np.array(stored[place], dtype=np.float32) for place in stored}
    for place, value in values.items():
        if value.ndim != 2 or not 0 < len(value) <= n_token:
            raise FileError(f"{scheme} gave {place_text(place)} with shape {list(value.shape)}; "
                            f"[{n_token}, width] was needed.")
    if not values:
        raise FileError(f"{scheme} gave no stage at all. Its last words: {_last_line(folder)}")
    return values


def write_answer(folder: Path, answer: Answer, values: Mapping[Place, Any]) -> None:
    """Write a child's values and then its answer, which stands only when all is there."""
    from core.trace.values_file import write_values

    write_values(folder / VALUES, values)
    with atomic_file(folder / ANSWER) as part:
        part.write_text(json.dumps(asdict(answer)))


def read_ask(folder: Path) -> Ask:
    """Read what the parent asks."""
    return msgspec.json.decode(read_file(folder / ASK, DOCUMENT_BYTES, ""), type=Ask)


def tell(folder: Path, line: str) -> None:
    """Report progress: what is being done."""
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def stages_wanted(ask: Ask, layer: int | None) -> Sequence[str] | None:
    """The stages to take of a layer: None is all of them, else the residual stream only."""
    if layer is None or ask.layers is None or ask.layers[0] <= layer < ask.layers[1]:
        return None
    return ("output",)
