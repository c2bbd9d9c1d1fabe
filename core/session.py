"""The door: open, trace, compare, check, export. The command line and the console both call it; it prints nothing.

Nothing here imports torch or polars before a run needs them. A Source is what to run or open, a Prompt what to feed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.formats.model_file import ModelFile
from core.model.arch import Arch, read_arch, stage_weights
from core.model.stages import Place, scope_positions
from core.opening import (
    continue_text,
    describe,
    encode_beside,
    is_bundle,
    load_torch,
    open_bundle,
    open_model,
    open_pair,
    open_saved,
    ready,
    room,
)
from core.proof.verdict import Bisection, Check, Comparison
from core.system.cancel import IsCancelled, never
from core.system.errors import UsageError
from core.trace.events import Emit, Event, no_emit
from core.trace.finding import Finding
from core.trace.hints import find_hints
from core.trace.record import Trace
from core.trace.request import Prompt, Source
from core.trace.stats import Cell

__all__ = [
    "arch_facts", "bisect", "check", "check_out", "compare", "convert", "default_out", "ensure_demo",
    "export_bisection", "export_check", "export_comparison", "export_csv", "export_trace", "hints", "import_trace",
    "is_bundle", "open_bundle", "open_model", "sibling", "trace", "weights_behind", "write_demo",
]


def trace(
    source: Source, prompt: Prompt, *, scope: str = "all", layers: tuple[int, int] | None = None,
    keep_values: bool = False, witness: bool = True, generate: int = 0,
    emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Trace:
    """Run a traced forward; emits phase, start, cell and token events; raises Cancelled when cancelled() turns true.

    scope: checked against the prompt's length, so that a position which is not there is a UsageError before the run.
    """
    if source.scheme:
        if generate:
            raise UsageError(
                f"--generate: {source.scheme} is run on the prompt only. Leave it out, or trace the model file.")
        from core.captures import trace_source

        return trace_source(source, prompt, layers=layers, keep_values=keep_values, witness=witness, emit=emit,
                            cancelled=cancelled)
    if is_bundle(source.path):
        return open_saved(source)
    file = open_model(source.path)
    arch = read_arch(file)
    if layers is not None and not 0 <= layers[0] < layers[1] <= arch.n_layer:
        raise UsageError(
            f"--layers {layers[0]}..{layers[1]}: A..B with 0 <= A < B <= {arch.n_layer} is needed (B excluded).")
    tokens = encode_beside(file, prompt, lambda: load_torch(source.device, emit))
    if scope.startswith("pos:") and not scope_positions(scope, len(tokens)):
        raise UsageError(f"--scope {scope}: the prompt has {len(tokens)} tokens, positions 0 to {len(tokens) - 1}.")
    emit(Event("start", n_layer=arch.n_layer, tokens=tokens))
    side, reason = ready(source, file, emit)
    from core.trace import run

    emit(Event("phase", "tracing"))
    kept: dict[Place, Any] | None = {} if keep_values else None
    cells, logits, same = run.run_traced(
        side, [t.id for t in tokens], witness=witness, layers=layers, keep=kept, emit=emit, cancelled=cancelled)
    return replace(
        describe(side, reason, tokens), cells=cells, values=kept, observed_equals_unobserved=same,
        top=run.top_tokens(file, logits),
        generated=continue_text(side, tokens, generate, emit, cancelled) if generate else None,
    )


def compare(
    a: Source, b: Source, prompt: Prompt | None, *, scope: str = "all", threshold: float = 10.0,
    keep_values: bool = False, emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Comparison:
    """Judge B against A; its events carry side A or B. No prompt: the tokens of a bundle, or else the default."""
    from core.proof.judge_pair import Question, judge, judge_saved

    ask = Question(scope, threshold, emit, cancelled, keep_values)
    saved = [open_saved(s) if is_bundle(s.path) else None for s in (a, b)]
    if any(saved) or a.scheme or b.scheme:
        from core.captures import compare_sources

        judged = compare_sources(a, b, prompt, (saved[0], saved[1]), ask)
        if judged is not None:
            return judged
    if any(saved):
        return judge_saved(*_beside_bundle(a, b, saved, prompt, ask.emit, cancelled), ask)
    return judge(*open_pair(a, b, prompt, emit), ask)


def bisect(
    a: Source, b: Source, prompt: Prompt | None, *, scope: str = "all", threshold: float = 10.0, emit: Emit = no_emit,
    cancelled: IsCancelled = never,
) -> Bisection:
    """Judge B against A, then prove the cause by grafts; UsageError for a bundle: it cannot be run again."""
    for source in (a, b):
        if is_bundle(source.path):
            raise UsageError(f"{source.path} is a bundle: it cannot be run with a graft. Bisect the model files.")
    side_a, side_b, trace_a, trace_b = open_pair(a, b, prompt, emit)
    from core.proof.bisect import climb
    from core.proof.judge_pair import Question, judge
    from core.proof.ladder_cache import open_ladder
    from core.proof.reproducer import write_reproducer

    result = judge(side_a, side_b, trace_a, trace_b, Question(scope, threshold, emit, cancelled))
    if result.first is None:
        return Bisection(result)
    ids = [t.id for t in trace_a.tokens]
    with open_ladder(trace_a, trace_b) as (known, learnt):
        ladder = climb(side_a, side_b, ids, known, learnt=learnt, emit=emit, cancelled=cancelled)
    if result.side is None or result.error is None:
        return Bisection(result, ladder)
    wrong, place, error = side_a if result.side == "A" else side_b, result.first, result.error
    return Bisection(result, ladder, lambda folder: write_reproducer(
        folder, wrong, result.side or "", place, error, ids, cancelled))


def _beside_bundle(
    a: Source, b: Source, saved: Sequence[Trace | None], prompt: Prompt | None, emit: Emit, cancelled: IsCancelled
) -> tuple[Trace, Trace]:
    """Both traces, where at least one is a bundle; a model file beside it is run on the bundle's tokens."""
    known = next(t for t in saved if t)
    if prompt is None and known.tokens:
        prompt = Prompt(tokens=tuple(t.id for t in known.tokens))

    def run(source: Source, side: str) -> Trace:
        return trace(source, prompt or Prompt(), keep_values=known.values is not None, cancelled=cancelled,
                     emit=lambda event: emit(replace(event, side=side)))

    return saved[0] or run(a, "A"), saved[1] or run(b, "B")


def hints(trace: Trace, scope: str, threshold: float = 10.0) -> Sequence[Finding]:
    """Find the hints of a trace at a scope."""
    return find_hints(trace, scope=scope, threshold=threshold)


def check(
    source: Source, prompt: Prompt | None, *, model: Path | None = None, generate: int = 0, emit: Emit = no_emit,
    cancelled: IsCancelled = never,
) -> Check:
    """Recompute every stage in float64 from the source's own inputs; generated positions also through the KV cache.

    Errors: NotComparableError where a bundle has no values, and those of opening and running a file.
    """
    if source.scheme or is_bundle(source.path):
        from core.captures import check_source

        return check_source(source, prompt or Prompt(), model, emit=emit, cancelled=cancelled)
    file = open_model(source.path)
    tokens = encode_beside(file, prompt or Prompt(), lambda: load_torch(source.device, emit))
    emit(Event("start", n_layer=read_arch(file).n_layer, tokens=tokens))
    side, reason = ready(source, file, emit)
    from core.proof.check import replay
    from core.trace import run
    from core.trace.taps import record

    emit(Event("phase", "checking against float64"))
    cells: dict[Place, Cell] = {}

    def seen(place: Place, stats: Cell) -> None:
        cells[place] = stats
        emit(Event("cell", place=place, cell=stats))

    errors, logits = replay(
        side, [t.id for t in tokens], watch=record(seen, len(tokens)), witness=True, cancelled=cancelled,
        seen=lambda place, error: emit(Event("error", place=place, error=error)))
    traced = replace(describe(side, reason, tokens), cells=cells, top=run.top_tokens(file, logits[0]),
                     observed_equals_unobserved=run.same_bits(*logits))
    if not generate:
        return Check(traced, errors)
    from core.proof.check_cache import decoded_cells

    emit(Event("phase", "checking generated positions through the cache"))
    ids = [t.id for t in tokens]
    more = run.continue_greedily(side, ids, room(side, tokens, generate), (), lambda i: None, cancelled)
    return Check(traced, errors, decoded_cells(side, ids + more, len(ids), cancelled) if more else {})


def export_trace(
    trace: Trace, out: Path, *, scope: str, threshold: float, force: bool, command: str,
    durations: Mapping[str, float] | None = None,
) -> Path:
    """Write a bundle, whole or not at all; UsageError where it exists and force is not set, OutputError."""
    from core.bundle.writer import write_bundle

    return write_bundle(
        out, trace, scope=scope, findings=hints(trace, scope, threshold), threshold=threshold, force=force,
        values=trace.values is not None, manifest_extra={"command": command, "durations": dict(durations or {})})


def export_csv(trace: Trace, path: Path, scope: str) -> None:
    """Write the wide std grid; OutputError."""
    from core.bundle.writer import write_wide_csv

    write_wide_csv(path, trace, scope)


def export_comparison(comparison: Comparison, out: Path, *, threshold: float, force: bool, command: str) -> Path:
    """Write a/, b/, cells.csv, verdict.json and manifest.json; errors as export_trace."""
    from core.bundle.verdicts import write_comparison

    findings = [hints(t, comparison.scope, threshold) for t in (comparison.a, comparison.b)]
    return write_comparison(out, comparison, findings, threshold=threshold, force=force, command=command)


def export_bisection(result: Bisection, out: Path, *, threshold: float, force: bool, command: str) -> Path:
    """Write what export_comparison writes, and the reproducer where a side is wrong."""
    from core.bundle.verdicts import write_comparison

    c = result.comparison
    findings = [hints(t, c.scope, threshold) for t in (c.a, c.b)]
    return write_comparison(out, c, findings, threshold=threshold, force=force, command=command, bisection=result)


def export_check(result: Check, out: Path, *, force: bool, command: str) -> Path:
    """Write local.csv, verdict.json and manifest.json; errors as export_trace."""
    from core.bundle.verdicts import write_check

    return write_check(out, result, force=force, command=command)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an output folder before work: UsageError where it exists without force, OutputError where it cannot be."""
    from core.system import atomic as new_folder

    new_folder.check_out(out, force=force)


def import_trace(path: Path, *, scope: str | None, tokens: Sequence[int] | None, definition: str | None) -> Trace:
    """Read another tool's trace; FileError."""
    from core.sources.imports import open_trace as imports

    return imports.import_trace(path, scope=scope, tokens=list(tokens) if tokens else None, definition=definition)


def convert(source: Path, target: Path, *, to: str | None, force: bool) -> Sequence[str]:
    """Convert between .gguf and .apr; returns notes for a person. FileError, UsageError, OutputError."""
    from core.model.convert import convert

    return convert(source, target, to=to, force=force)


def write_demo(out: Path, *, fault: str | None, force: bool) -> tuple[Path, Path]:
    """Write demo.gguf and demo.apr into a folder, with a bug in the .apr's bytes where fault names one."""
    from core.demo import files as demo

    return demo.write_demo(out, fault=fault, force=force)


def default_out(trace: Trace) -> Path:
    """./evidence/<model>-<first 8 hex digits of the input's hash>."""
    ids = ",".join(str(t.id) for t in trace.tokens)
    digest = hashlib.sha256(f"{trace.origin.get('header_sha256')} {ids}".encode()).hexdigest()
    return Path("evidence") / f"{Path(trace.name).stem}-{digest[:8]}"


def sibling(path: Path) -> Path | None:
    """The file of the other format beside this one (demo.gguf and demo.apr); None where there is none."""
    other = path.with_suffix({".gguf": ".apr", ".apr": ".gguf"}.get(path.suffix.lower(), ""))
    return other if other != path and other.is_file() else None


def weights_behind(model: ModelFile, layer: int | None, stage: str) -> Sequence[tuple[str, str, tuple[int, ...]]]:
    """Name, quant type and shape of each weight that makes a stage."""
    return [(w.name, w.quant, w.shape) for w in (model.weights[n] for n in stage_weights(model, layer, stage))]


def ensure_demo() -> tuple[Path, Path]:
    """Build the demonstration pair once (about two seconds) and return demo.gguf and demo.apr."""
    from core.demo import files as demo

    return demo.ensure_demo()


def arch_facts(model: ModelFile) -> Arch:
    """Hyper-parameters of an opened model; FileError."""
    return read_arch(model)
