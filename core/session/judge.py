"""Compare, bisect and check sources: open them, then let core.proof judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.stages import Place
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison
from core.session.pair import compare_files, open_both, open_pair
from core.session.prepare import (
    Prepared,
    empty_trace,
    fit_to_context,
    identifying,
    is_bundle,
    make_side,
    open_saved,
    prepare,
)
from core.session.run_trace import trace
from core.system.cancel import IsCancelled, never
from core.system.errors import UsageError
from core.system.progress import Phase
from core.trace.events import CellMeasured, Emit, StageJudged, Start, no_emit
from core.trace.measures import SideName
from core.trace.record import Trace
from core.trace.request import DEFAULTS, Prompt, RunOptions, Source
from core.trace.stats import Cell

if TYPE_CHECKING:
    from core.trace.run import Side


def compare(
    a: Source, b: Source, prompt: Prompt | None, options: RunOptions = DEFAULTS, *, emit: Emit = no_emit,
    cancelled: IsCancelled = never,
) -> Comparison:
    """Judge B against A; its events carry side A or B. No prompt: the tokens of a bundle, or else the default."""
    saved = [open_saved(s) if is_bundle(s.path) else None for s in (a, b)]
    if any(saved) or a.scheme or b.scheme:
        from core.proof.judge_pair import judge_saved
        from core.proof.measure_pair import CompareOptions
        from core.session.external import compare_sources

        ask = CompareOptions(options.scope, options.threshold, emit, cancelled, options.keep_values)
        judged = compare_sources(a, b, prompt, (saved[0], saved[1]), ask)
        if judged is not None or any(saved):
            return judged or judge_saved(*_beside_bundle(a, b, saved, prompt, emit, cancelled), ask)
    opened = open_both(a, b)
    files = compare_files(*opened, emit, cancelled)
    side_a, side_b, trace_a, trace_b = open_pair(a, b, opened, prompt, emit)
    from core.proof.judge_pair import judge  # which imports torch: open_pair does, while a prompt is encoded
    from core.proof.measure_pair import CompareOptions

    told = identifying(emit, trace_a.identity, trace_b.identity) if options.identify else emit
    ask = CompareOptions(options.scope, options.threshold, told, cancelled, options.keep_values)
    return replace(judge(side_a, side_b, trace_a, trace_b, ask), files=files)


def bisect(
    a: Source, b: Source, prompt: Prompt | None, options: RunOptions = DEFAULTS, *, emit: Emit = no_emit,
    cancelled: IsCancelled = never,
) -> Bisection:
    """Judge B against A, then prove the cause by grafts; UsageError for a bundle: it cannot be run again."""
    for source in (a, b):
        if is_bundle(source.path):
            raise UsageError(f"{source.path} is a bundle: it cannot be run with a graft. Bisect the model files.")
    opened = open_both(a, b)
    files = compare_files(*opened, emit, cancelled)
    side_a, side_b, trace_a, trace_b = open_pair(a, b, opened, prompt, emit)
    from core.proof.bisect import bisect_layers
    from core.proof.judge_pair import judge
    from core.proof.ladder_cache import open_ladder
    from core.proof.measure_pair import CompareOptions
    from core.proof.reproducer import write_reproducer

    known_by = identifying(emit, trace_a.identity, trace_b.identity)
    result = judge(side_a, side_b, trace_a, trace_b,
                   CompareOptions(options.scope, options.threshold, known_by, cancelled))
    result = replace(result, files=files)
    if result.first is None:
        return Bisection(result)
    ids = [t.id for t in trace_a.tokens]
    with open_ladder(trace_a, trace_b) as known:
        ladder = bisect_layers(side_a, side_b, ids, known, emit, cancelled)
    if result.side is None or result.error is None:
        return Bisection(result, ladder)
    wrong, place, error = side_a if result.side is SideName.A else side_b, result.first, result.error
    return Bisection(result, ladder, lambda folder: write_reproducer(
        folder, wrong, result.side or "", place, error, ids, cancelled))


def _beside_bundle(
    a: Source, b: Source, saved: Sequence[Trace | None], prompt: Prompt | None, emit: Emit, cancelled: IsCancelled
) -> tuple[Trace, Trace]:
    """Both traces, where at least one is a bundle; a model file beside it is run on the bundle's tokens."""
    from core.proof.compare_saved import has_samples

    known = next(t for t in saved if t)
    if prompt is None and known.tokens:
        prompt = Prompt(tokens=tuple(t.id for t in known.tokens))

    def run(source: Source, side: SideName) -> Trace:
        options = RunOptions(keep_values=known.values is not None or has_samples(known))
        return trace(source, prompt or Prompt(), options, cancelled=cancelled, emit=lambda event: emit(
            replace(event, side=side) if isinstance(event, CellMeasured) else event))

    return saved[0] or run(a, SideName.A), saved[1] or run(b, SideName.B)


def check(
    source: Source, prompt: Prompt | None, options: RunOptions = DEFAULTS, *, model: Path | None = None,
    emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Check:
    """Recompute every stage in float64 from the source's own inputs; generated positions also through the KV cache.

    model: the weights of a bundle. Errors: NotComparableError where it has no values, and those of running a file.
    """
    if source.scheme or is_bundle(source.path):
        from core.session.external import check_source

        return check_source(source, prompt or Prompt(), model, emit=emit, cancelled=cancelled)
    opened = prepare(source, prompt or Prompt(), emit)
    ids = [t.id for t in opened.tokens]
    emit(Start(n_layer=opened.arch.n_layer, tokens=opened.tokens))
    side = make_side(opened, source, emit)
    from core.proof.check import check_run
    from core.proof.weights.scan import scan_weights
    from core.trace import run
    from core.trace.taps import record

    emit(Phase("checking against float64"))
    told = identifying(emit, opened.identity) if options.identify else emit
    cells: dict[Place, Cell] = {}

    def on_cell(place: Place, stats: Cell) -> None:
        cells[place] = stats
        told(CellMeasured(place, stats))

    done = check_run(side, ids, watch=record(on_cell, len(ids)), cancelled=cancelled,
                     on_error=lambda place, error: emit(StageJudged(place, error)))
    traced = replace(empty_trace(side, opened), cells=cells, top=run.top_tokens(opened.tokenizer, done.logits),
                     observed_equals_unobserved=done.same_logits)
    emit(Phase("reading the weights"))
    found = Check(traced, done.errors, unmeasured=done.lost, overflow=done.overflow,
                  scan=scan_weights(opened.file, opened.arch, cancelled))
    return _through_cache(found, side, opened, options.generate, emit, cancelled) if options.generate else found


def _through_cache(
    found: Check, side: Side, opened: Prepared, n_token: int, emit: Emit, cancelled: IsCancelled
) -> Check:
    """The check with positions that are generated, through the KV cache against one prefill."""
    from core.proof.check_cache import decoded_cells
    from core.trace import run

    emit(Phase("checking generated positions through the cache"))
    ids = [t.id for t in opened.tokens]
    more = run.continue_greedily(side, ids, fit_to_context(side, opened.tokens, n_token), (), lambda i: None, cancelled)
    return replace(found, decoded=decoded_cells(side, ids + more, len(ids), cancelled) if more else {})
