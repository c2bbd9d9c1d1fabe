"""Take, check and compare sources that are not run by our own forward: other engines, and bundles with values.

run_trace.py and judge.py call it. Measuring is in proof/capture.py and proof/check.py, the verdict of a pair in
proof/judge_capture.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.stages import Place, place_order
from core.proof.verdict import Check, Comparison
from core.session import prepare as opening
from core.session.prepare import OpenedModel
from core.sources.engines.trace import check_path, folder_tokens, trace_engine
from core.system.cancel import IsCancelled
from core.system.errors import NotComparableError, UsageError
from core.trace.events import Emit, Event
from core.trace.measures import LocalError
from core.trace.record import Token, Trace
from core.trace.request import Prompt, RunOptions, Source

if TYPE_CHECKING:
    from core.proof.capture import Capture
    from core.proof.judge_pair import Question
    from core.trace.run import Side

TextOf = Callable[[int], str | None]


def trace_source(
    source: Source, prompt: Prompt, options: RunOptions, *, emit: Emit, cancelled: IsCancelled,
) -> Trace:
    """Trace another engine on a file or folder, by the file's own tokenizer."""
    check_path(source)
    file = _file(source)
    tokens, text_of = _encode(source, file, prompt)
    emit(Event("start", n_layer=file.arch.n_layer if file else None, tokens=tokens))
    traced = _identified(trace_engine(
        source, tokens, text_of, layers=options.layers, witness=options.witness, emit=emit, cancelled=cancelled), file)
    return traced if options.keep_values else replace(traced, values=None)


def check_source(source: Source, prompt: Prompt, model: Path | None, *, emit: Emit, cancelled: IsCancelled) -> Check:
    """Check another engine's values, or a bundle's, against float64 with a file's weights; NotComparableError."""
    if opening.is_bundle(source.path):
        traced = opening.open_bundle(source.path)
        if traced.values is None:
            raise NotComparableError(f"{source.path} was written without --values: there is nothing to recompute from. "
                                     "Trace again with --values, or check the model file.")
        if model is None:
            raise UsageError(f"{source.path} is a bundle: give the file that it was made from with --model FILE.")
        file = opening.open_once(model)
    else:
        check_path(source)
        found = opening.open_once(model) if model is not None else _file(source)
        if found is None:
            raise UsageError(f"{source.path} is a folder: give a GGUF or .apr of the same weights with --model FILE.")
        file = found
        tokens, text_of = _encode(source, file, prompt)
        emit(Event("start", n_layer=file.arch.n_layer, tokens=tokens))
        traced = _identified(trace_engine(source, tokens, text_of, emit=emit, cancelled=cancelled), file)
        if traced.tokens != tokens:
            raise NotComparableError(f"{source.scheme} ran other tokens than it was asked to: "
                                     f"{[t.id for t in traced.tokens]} instead of {[t.id for t in tokens]}.")
    return check_values(traced, file, source, emit=emit, cancelled=cancelled)


def check_values(traced: Trace, model: OpenedModel, source: Source, *, emit: Emit, cancelled: IsCancelled) -> Check:
    """Recompute a trace's values in float64 at its declared compute; where it declares none, at each that is known."""
    from core.proof.capture import misfits
    from core.proof.check import replay
    from core.quant.activations import COMPUTES
    from core.trace.taps import no_tap

    refuse_other_rows(traced)
    values = traced.values or {}
    file = model.file
    wrong = misfits(values, model.arch, len(traced.tokens))
    if wrong:
        raise NotComparableError(f"these values are not of {file.path.name}: {wrong[0]}. "
                                 "Give the file that they were made from.")
    notes = list(traced.notes)
    made_from = traced.origin.get("header_sha256")
    if made_from is not None and made_from != file.header_sha256:
        notes.append(f"the values were made from another file (header {made_from[:12]}) than {file.path.name} "
                     f"(header {file.header_sha256[:12]}); its shapes fit, and they are checked against its weights")
    declared = traced.facts.compute
    best: Check | None = None
    own = opening.prepared(model, traced.tokens, source.device, emit)
    for compute in (declared,) if declared in COMPUTES else tuple(COMPUTES):
        emit(Event("phase", f"checking against float64, at compute {compute}"))
        side = opening.ready(own, replace(source, scheme="", compute=str(compute), plant=None), emit)
        errors, _ = replay(side, [t.id for t in traced.tokens], watch=no_tap, values=values, cancelled=cancelled)
        unknown = () if declared in COMPUTES else (f"the compute is unknown; it was judged as {compute}",)
        result = Check(replace(traced, notes=(*notes, *unknown)), errors)
        if best is None or _reach(result.errors) > _reach(best.errors):
            best = result
        if best.first is None:
            break
    assert best is not None
    if best.first is None and (None, "logits") not in values:
        raise NotComparableError(f"{traced.name} lacks the logits: each of the {len(best.errors)} stages that it shows "
                                 "is right, but what follows them is not shown. Take the values of every stage.")
    return best


def compare_sources(
    a: Source, b: Source, prompt: Prompt | None, saved: tuple[Trace | None, Trace | None], ask: Question,
) -> Comparison | None:
    """Judge B against A where a side is another engine, or a bundle with values of the other side's own file.

    None where a bundle cannot be judged so: its statistics, or its values without weights, are all there is.
    """
    from core.proof.capture import Capture
    from core.proof.judge_capture import judge_captured

    for source in (a, b):
        if source.scheme:
            check_path(source)
    files = [None if s is not None else _file(source) for source, s in zip((a, b), saved, strict=True)]
    file = next((f for f in files if f is not None), None)
    if file is None:
        if any(saved):
            return None
        raise UsageError("the weights of a folder are not read here: one side must be a file, FILE or llama.cpp:FILE.")
    for trace in filter(None, saved):
        if trace.values is None or trace.origin.get("header_sha256") != file.file.header_sha256 or not trace.tokens:
            return None
    known = next(filter(None, saved), None)
    fed = prompt or (Prompt(tokens=tuple(t.id for t in known.tokens)) if known else Prompt())
    tokens = opening.encode(file, fed)
    ask.emit(Event("start", n_layer=file.arch.n_layer, tokens=tokens))
    sides: list[Side | Capture] = []
    traces: list[Trace] = []
    for name, source, own, stored in zip("AB", (a, b), files, saved, strict=True):
        weights = own or file
        if not source.scheme and stored is None:
            model = opening.prepared(weights, _own_tokens(weights, fed, tokens), source.device, ask.emit)
            side = opening.ready(model, source, ask.emit)
            sides.append(side)
            traces.append(opening.describe(side, model))
            continue
        taken = stored or _identified(trace_engine(
            source, _own_tokens(weights, fed, tokens), weights.tokenizer.token_text, side=name, emit=ask.emit,
            cancelled=ask.cancelled), own)
        live = replace(source, scheme="", compute=taken.facts.compute or source.compute, plant=None)
        side = opening.ready(opening.prepared(weights, tokens, live.device, ask.emit), live, ask.emit)
        sides.append(Capture(side, taken.values or {}, borrowed=own is None and stored is None))
        traces.append(taken)
    return judge_captured(sides[0], sides[1], traces[0], traces[1], ask)


def refuse_other_rows(traced: Trace) -> None:
    """NotComparableError where the tokens are unknown, or the values are not those of all or the last tokens."""
    if not traced.tokens:
        raise NotComparableError(f"{traced.name} does not say its tokens: nothing can be recomputed. "
                                 "Import it with --tokens 1,2,3.")
    if traced.facts.scopes and "all" not in traced.facts.scopes and traced.facts.scopes != ("last",):
        raise NotComparableError(f"{traced.name} has values at scope {', '.join(traced.facts.scopes)} only; "
                                 "those of every token or of the last one are needed.")


def _file(source: Source) -> OpenedModel | None:
    """The model file behind a source; None for a folder of another format."""
    return None if source.scheme and source.path.is_dir() else opening.open_once(source.path)


def _encode(source: Source, file: OpenedModel | None, prompt: Prompt) -> tuple[tuple[Token, ...], TextOf]:
    if file is None:
        return folder_tokens(source.path, prompt)
    return opening.encode(file, prompt), file.tokenizer.token_text


def _own_tokens(file: OpenedModel, prompt: Prompt, tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    return tokens if file.tokenizer.refusal else opening.encode(file, prompt)


def _identified(traced: Trace, model: OpenedModel | None) -> Trace:
    """The trace with the identity of the file that its engine read."""
    if model is None:
        return traced
    file = model.file
    return replace(traced, origin={
        **traced.origin, "format": file.format, "size_bytes": file.size_bytes, "header_sha256": file.header_sha256})


def _reach(errors: Mapping[Place, LocalError]) -> tuple[bool, tuple[int, int]]:
    """How far a check came: whether it passed, else the order of its first bad place."""
    bad = [p for p, e in errors.items() if e.is_bad]
    return (not bad, min((place_order(p) for p in bad), default=(0, 0)))
