"""The door: open, trace, compare, train, export. The command line and the console both call it; it prints nothing.

Nothing here imports torch or polars before a run needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.finding import Finding
from core.model_file import ModelFile
from core.trace import Emit, IsCancelled, Token, Trace, never, no_emit
from core.verdict import Comparison


@dataclass(frozen=True, slots=True)
class Source:
    """Anything that yields a Trace: a model file with its settings, a saved bundle, another engine on a file (scheme)."""

    path: Path
    scheme: str = ""      # "", llama.cpp or transformers
    compute: str = "f32"  # f32, q8, bf16
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    threads: int | None = None
    plant: str | None = None  # KIND@LAYER.STAGE


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to feed: token ids if given, else text (through the file's template if chat)."""

    text: str = "What is 2+2?"
    tokens: tuple[int, ...] | None = None
    chat: bool = False


def open_model(path: Path) -> ModelFile:
    """Open a GGUF or .apr file in well under 0.1 s, weights mapped and not read; FileError."""
    raise NotImplementedError


def encode(model: ModelFile, prompt: Prompt) -> tuple[Token, ...]:
    """Turn a prompt into tokens with the file's own tokenizer; UsageError, FileError (unusable tokenizer, with the way out)."""
    raise NotImplementedError


def trace(
    source: Source, prompt: Prompt, *, layers: tuple[int, int] | None = None, keep_values: bool = False, witness: bool = True,
    generate: int = 0, emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Trace:
    """Run a traced forward; emits phase, start and cell events; raises Cancelled when cancelled() turns true."""
    raise NotImplementedError


def compare(
    a: Source, b: Source, prompt: Prompt | None, *, scope: str = "all", threshold: float = 10.0,
    emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Comparison:
    """Judge B against A; its events carry side A or B."""
    raise NotImplementedError


def hints(trace: Trace, scope: str, threshold: float = 10.0) -> Sequence[Finding]:
    """Find the hints of a trace at a scope."""
    raise NotImplementedError


def is_bundle(path: Path) -> bool:
    """Say whether the path is a saved bundle's folder."""
    return (path / "manifest.json").is_file()


def open_bundle(path: Path) -> Trace:
    """Open a saved bundle; FileError."""
    raise NotImplementedError


def export_trace(trace: Trace, out: Path, *, scope: str, threshold: float, force: bool, command: str) -> Path:
    """Write a bundle, whole or not at all; UsageError where it exists and force is not set, OutputError."""
    raise NotImplementedError


def export_comparison(comparison: Comparison, out: Path, *, threshold: float, force: bool, command: str) -> Path:
    """Write a/, b/, cells.csv and verdict.json."""
    raise NotImplementedError


def default_out(trace: Trace) -> Path:
    """./evidence/<model>-<first 8 hex digits of the input's hash>."""
    raise NotImplementedError


def sibling(path: Path) -> Path | None:
    """The file of the other format beside this one (demo.gguf and demo.apr); None where there is none."""
    raise NotImplementedError


def weights_behind(model: ModelFile, layer: int | None, stage: str) -> Sequence[tuple[str, str, tuple[int, ...]]]:
    """Name, quant type and shape of each weight that makes a stage."""
    raise NotImplementedError


def ensure_demo() -> tuple[Path, Path]:
    """Build the demonstration pair once (about two seconds) and return demo.gguf and demo.apr."""
    raise NotImplementedError


def arch_facts(model: ModelFile) -> Mapping[str, Any]:
    """Hyper-parameters for the screen: name, n_layer, d_model, n_head, n_kv_head, head_dim, d_ff, n_vocab; FileError."""
    raise NotImplementedError
