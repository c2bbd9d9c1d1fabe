"""Run a traced forward of a source, and find its hints. Torch is imported when a run needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.model.stages import Place, scope_positions
from core.session.prepare import (
    OpenedModel,
    continue_text,
    empty_trace,
    identifying,
    is_bundle,
    make_side,
    open_saved,
    prepare,
)
from core.system.cancel import IsCancelled, never
from core.system.errors import UsageError
from core.system.progress import Phase
from core.trace.events import Emit, Start, no_emit
from core.trace.finding import Finding
from core.trace.hints import find_hints
from core.trace.record import Trace
from core.trace.request import DEFAULTS, Prompt, RunOptions, Source

if TYPE_CHECKING:
    from core.trace.look_inside import LayerView

PROVED_BYTES = 256 << 20  # a larger file's proofs take more than half a second: audit, check and the console ask


def trace(
    source: Source, prompt: Prompt, options: RunOptions = DEFAULTS, *, emit: Emit = no_emit,
    cancelled: IsCancelled = never,
) -> Trace:
    """Run a traced forward; emits phase, start, cell and token events; raises Cancelled when cancelled() turns true.

    The scope is checked against the prompt's length: a position that is not there is a UsageError before the run.
    """
    if source.scheme:
        if options.generate:
            raise UsageError(
                f"--generate: {source.scheme} is run on the prompt only. Leave it out, or trace the model file.")
        from core.session.external import trace_source

        return trace_source(source, prompt, options, emit=emit, cancelled=cancelled)
    if is_bundle(source.path):
        return open_saved(source)
    model = prepare(source, prompt, emit, options.layers)
    n_token = len(model.tokens)
    if options.scope.startswith("pos:") and not scope_positions(options.scope, n_token):
        raise UsageError(f"--scope {options.scope}: the prompt has {n_token} tokens, positions 0 to {n_token - 1}.")
    emit(Start(n_layer=model.arch.n_layer, tokens=model.tokens))
    side = make_side(model, source, emit)
    from core.trace import run

    emit(Phase("tracing"))
    kept: dict[Place, Any] | None = {} if options.keep_values else None
    if options.identify:
        emit = identifying(emit, model.identity)
    cells, logits, same = run.run_traced(
        side, [t.id for t in model.tokens], witness=options.witness, layers=options.layers, keep=kept, emit=emit,
        cancelled=cancelled)
    known = empty_trace(side, model)
    return replace(
        known, notes=(*known.notes, *proof_notes(model, cancelled)), cells=cells, values=kept,
        observed_equals_unobserved=same,
        top=run.top_tokens(model.tokenizer, logits),
        generated=continue_text(side, model, options.generate, emit, cancelled) if options.generate else None,
    )


def layer_view(
    source: Source, prompt: Prompt, layer: int, *, emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> LayerView:
    """Look into one layer of a model file's run: histograms, attention, the logit lens; UsageError, Cancelled."""
    if source.scheme or is_bundle(source.path):
        raise UsageError(f"{source.path} is not run here: only a model file's layers can be looked into.")
    model = prepare(source, prompt, emit)
    if not 0 <= layer < model.arch.n_layer:
        raise UsageError(f"layer {layer}: the model has layers 0 to {model.arch.n_layer - 1}.")
    side = make_side(model, source, emit)
    from core.trace.look_inside import layer_view

    emit(Phase(f"running up to layer {layer}"))
    return layer_view(side, [t.id for t in model.tokens], layer, cancelled)


def proof_notes(model: OpenedModel, cancelled: IsCancelled = never, most_bytes: int = PROVED_BYTES) -> tuple[str, ...]:
    """What an audit proves of the file, in one line; () of a sound file, or one too large to wait for. Cancelled."""
    from core.audit.audit_file import proof_note, prove

    found = prove(model.file, model.arch, cancelled) if model.file.size_bytes <= most_bytes else []
    return (proof_note(found, model.file.path.name),) if found else ()


def hints(trace: Trace, scope: str, threshold: float = DEFAULTS.threshold) -> Sequence[Finding]:
    """Find the hints of a trace at a scope."""
    return find_hints(trace, scope=scope, threshold=threshold)
