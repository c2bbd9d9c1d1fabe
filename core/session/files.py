"""Files beside a run: audit, import, convert, the demonstration, what lies beside a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.model_file import ModelFile
from core.model.arch import Arch, read_arch, stage_weights
from core.system.cancel import IsCancelled, never
from core.trace.record import Trace
from core.trace.request import Source, parse_source

if TYPE_CHECKING:
    from core.audit.audit_file import Audit
    from core.audit.spread import Spread
    from core.bundle.judged import Judged


def import_trace(
    path: Path, *, scope: str | None = None, tokens: Sequence[int] | None = None, definition: str | None = None,
    model: Path | None = None,
) -> Trace:
    """Read another tool's trace; model: the file that it ran, which says the rest. FileError, UsageError."""
    from core.sources.imports import open_trace as imports

    return imports.import_trace(path, scope=scope, tokens=list(tokens) if tokens else None, definition=definition,
                                model=model)


def source(text: str | Path) -> Source:
    """A side as a command line calls it: FILE, FILE@compute=q8, llama.cpp:FILE, a bundle's folder; UsageError."""
    return parse_source(str(text), Source(Path()))


def audit(path: Path | str, original: Path | str | None = None, cancelled: IsCancelled = never) -> Audit:
    """Hold a file to what it shows by itself, or beside its original, without a forward; FileError, Cancelled."""
    from core.audit.audit_file import audit_file
    from core.audit.original import audit_beside

    path = Path(path)
    return audit_file(path, cancelled) if original is None else audit_beside(path, Path(original), cancelled)


def is_judged(path: Path) -> bool:
    """Say whether the path is the folder of a comparison, a bisection or a check."""
    return all(os.path.isfile(path / name) for name in ("manifest.json", "verdict.json"))


def open_judged(path: Path) -> Judged:
    """Open the folder of a verdict as it was found; FileError."""
    from core.bundle.judged import read_judged

    return read_judged(path)


def convert(source: Path, target: Path, *, to: str | None, force: bool) -> Sequence[str]:
    """Convert between .gguf and .apr; returns notes for a person. FileError, UsageError, OutputError."""
    from core.model.convert import convert

    return convert(source, target, to=to, force=force)


def write_demo(out: Path, *, fault: str | None, force: bool) -> tuple[Path, Path]:
    """Write demo.gguf and demo.apr into a folder, with a bug in the .apr's bytes where fault names one."""
    from core.demo import files as demo

    return demo.write_demo(out, fault=fault, force=force)


def sibling(path: Path) -> Path | None:
    """The file of the other format beside this one (demo.gguf and demo.apr); None where there is none."""
    other = path.with_suffix({".gguf": ".apr", ".apr": ".gguf"}.get(path.suffix.lower(), ""))
    return other if other != path and other.is_file() else None


def weights_behind(model: ModelFile, layer: int | None, stage: str) -> Sequence[tuple[str, str, tuple[int, ...]]]:
    """Name, quant type and shape of each weight that makes a stage."""
    of = None if layer is None else read_arch(model).layers[layer]
    return [(w.name, w.quant, w.shape) for w in (model.weights[n] for n in stage_weights(model, of, stage))]


def weight_spread(model: ModelFile, name: str) -> Spread | None:
    """Level of a weight beside the same weight of other layers, from a few rows of each; None where it has no other."""
    from core.audit.spread import weight_spread

    return weight_spread(model, name)


def ensure_demo() -> tuple[Path, Path]:
    """Build the demonstration pair once (about two seconds) and return demo.gguf and demo.apr."""
    from core.demo import files as demo

    return demo.ensure_demo()


def arch_facts(model: ModelFile) -> Arch:
    """Hyper-parameters of an opened model; FileError."""
    return read_arch(model)
