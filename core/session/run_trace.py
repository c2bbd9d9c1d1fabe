"""Run a traced forward of a source, and find its hints. Torch is imported when a run needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from core.model.arch import read_arch
from core.model.stages import Place, scope_positions
from core.session.prepare import (
    continue_text,
    describe,
    encode_beside,
    is_bundle,
    load_torch,
    open_model,
    open_saved,
    ready,
)
from core.system.cancel import IsCancelled, never
from core.system.errors import UsageError
from core.system.progress import Phase
from core.trace.events import Emit, Start, no_emit
from core.trace.finding import Finding
from core.trace.hints import find_hints
from core.trace.record import Trace
from core.trace.request import Prompt, Source


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
        from core.session.external import trace_source

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
    emit(Start(n_layer=arch.n_layer, tokens=tokens))
    side, reason = ready(source, file, emit)
    from core.trace import run

    emit(Phase("tracing"))
    kept: dict[Place, Any] | None = {} if keep_values else None
    cells, logits, same = run.run_traced(
        side, [t.id for t in tokens], witness=witness, layers=layers, keep=kept, emit=emit, cancelled=cancelled)
    return replace(
        describe(side, reason, tokens), cells=cells, values=kept, observed_equals_unobserved=same,
        top=run.top_tokens(file, logits),
        generated=continue_text(side, tokens, generate, emit, cancelled) if generate else None,
    )


def hints(trace: Trace, scope: str, threshold: float = 10.0) -> Sequence[Finding]:
    """Find the hints of a trace at a scope."""
    return find_hints(trace, scope=scope, threshold=threshold)
