"""Take, check and compare sources that are not run by our own forward: other engines, and bundles with values.

run_trace.py and judge.py call it. Measuring is in proof/capture.py and proof/check.py, the verdict of a pair in
proof/judge_capture.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.file_facts import ELSEWHERE
from core.model.stages import Place, place_order
from core.proof.check_result import Check
from core.proof.verdict import Comparison
from core.session import prepare
from core.session.prepare import OpenedModel
from core.session.same_file import by_identity, check_by_identity
from core.sources.engines.trace import check_path, folder_tokens, trace_engine
from core.system.cancel import IsCancelled
from core.system.errors import ArchError, NotComparableError, UsageError
from core.system.progress import Phase
from core.trace.events import Emit, Start
from core.trace.measures import LocalError, SideName
from core.trace.record import Token, Trace
from core.trace.request import Prompt, RunOptions, Source

if TYPE_CHECKING:
    from core.proof.capture import ExternalRun
    from core.proof.explain import Party
    from core.proof.measure_pair import CompareOptions

TextOf = Callable[[int], str | None]


def trace_source(
    source: Source, prompt: Prompt, options: RunOptions, *, emit: Emit, cancelled: IsCancelled,
) -> Trace:
    """Trace another engine on a file or folder, by the file's own tokenizer.

    A file that only the engine runs gives the statistics of the nodes that it names, and a note says so.
    """
    check_path(source)
    refused: ArchError | None = None
    try:
        file = _file(source)
        tokens, text_of = _encode(source, file, prompt)
    except ArchError as error:
        file, refused = None, error
        tokens, text_of = prepare.encode_unknown(source.path, prompt)
    emit(Start(n_layer=file.arch.n_layer if file else None, tokens=tokens))
    traced = trace_engine(
        source, tokens, text_of, layers=options.layers, witness=options.witness, emit=emit, cancelled=cancelled)
    if refused is not None:
        why = str(refused).removesuffix(f" {ELSEWHERE}")
        note = f"statistics of the stages that {source.scheme} names; nothing is recomputed. {why}"
        return replace(traced, values=None, notes=(*traced.notes, note))
    traced = _identified(traced, file)
    return traced if options.keep_values else replace(traced, values=None)


def check_source(source: Source, prompt: Prompt, model: Path | None, *, emit: Emit, cancelled: IsCancelled) -> Check:
    """Check another engine's values, or a bundle's, against float64 with a file's weights; NotComparableError."""
    if prepare.is_bundle(source.path):
        traced = prepare.open_bundle(source.path)
        if traced.values is None:
            raise NotComparableError(f"{source.path} was written without --values: there is nothing to recompute from. "
                                     "Trace again with --values, or check the model file.")
        if model is None:
            raise UsageError(f"{source.path} is a bundle: give the file that it was made from with --model FILE.")
        file = prepare.open_once(model)
    else:
        check_path(source)
        own = _file(source)
        found = prepare.open_once(model) if model is not None else own
        if found is None:
            raise UsageError(f"{source.path} is a folder: give a GGUF or .apr of the same weights with --model FILE.")
        file = found
        tokens, text_of = _encode(source, file, prompt)
        emit(Start(n_layer=file.arch.n_layer, tokens=tokens))
        traced = _identified(trace_engine(
            source, tokens, text_of, beside=file.file.path, emit=emit, cancelled=cancelled), own)
        if traced.tokens != tokens:
            raise NotComparableError(f"{source.scheme} ran other tokens than it was asked to: "
                                     f"{[t.id for t in traced.tokens]} instead of {[t.id for t in tokens]}.")
    _refuse_misfit(traced, file)
    return check_by_identity(traced, file, cancelled, lambda stop: check_values(
        traced, file, source, emit=emit, cancelled=stop))


def _refuse_misfit(traced: Trace, model: OpenedModel) -> None:
    """NotComparableError where the values cannot be of the file, whatever its weights are."""
    from core.proof.capture import misfits

    refuse_other_rows(traced)
    wrong = misfits(traced.values or {}, model.arch, len(traced.tokens))
    if wrong:
        raise NotComparableError(f"these values are not of {model.file.path.name}: {wrong[0]}. "
                                 "Give the file that they were made from.")


def check_values(traced: Trace, model: OpenedModel, source: Source, *, emit: Emit, cancelled: IsCancelled) -> Check:
    """Recompute a trace's values in float64 at its declared compute; where it declares none, at each that is known."""
    from core.proof.capture import declared
    from core.proof.check import judge_stages
    from core.proof.weights.scan import scan_weights
    from core.quant.activations import COMPUTES

    values = traced.values or {}
    known = traced.facts.compute
    best: Check | None = None
    for compute in (known,) if known in COMPUTES else tuple(COMPUTES):
        emit(Phase(f"checking against float64, at compute {compute}"))
        live = replace(source, scheme="", compute=str(compute), plant=None)
        side = prepare.make_side(prepare.prepare_opened(model, traced.tokens, live, emit), live, emit)
        side = declared(side, traced.facts.kernel)
        found = judge_stages(side, [t.id for t in traced.tokens], values=values, cancelled=cancelled)
        unknown = () if known in COMPUTES else (f"the compute is unknown; it was judged as {compute}",)
        result = Check(replace(traced, notes=(*traced.notes, *unknown)), found.errors, unmeasured=tuple(found.lost),
                       overflow=found.overflow)
        if best is None or _reach(result.errors) > _reach(best.errors):
            best = result
        if best.first is None:
            break
    assert best is not None
    emit(Phase("reading the weights"))
    best = replace(best, scan=scan_weights(model.file, model.arch, cancelled))
    if best.first is None and (None, "logits") not in values:
        raise NotComparableError(f"{traced.name} lacks the logits: each of the {len(best.errors)} stages that it shows "
                                 "is right, but what follows them is not shown. Take the values of every stage.")
    return best


def compare_sources(
    a: Source, b: Source, prompt: Prompt | None, saved: tuple[Trace | None, Trace | None], ask: CompareOptions,
) -> Comparison | None:
    """Judge B against A where a side is another engine, or a bundle with values of the other side's own file.

    None where a bundle cannot be judged so: its statistics, or its values without weights, are all there is.
    """
    from core.proof.judge_capture import judge_external

    for source in (a, b):
        if source.scheme:
            check_path(source)
    sides = [open_side(source, trace) for source, trace in zip((a, b), saved, strict=True)]
    file = next((s.file for s in sides if not isinstance(s, SavedTrace) and s.file is not None), None)
    known = [s.trace for s in sides if isinstance(s, SavedTrace)]
    if file is None and not known:
        raise UsageError("the weights of a folder are not read here: one side must be a file, FILE or llama.cpp:FILE.")
    if file is None or not all(_may_have_values_of(trace, file) for trace in known):
        return None
    if known:
        ask = replace(ask, emit=prepare.identifying(ask.emit, file.identity))
    own = Prompt(tokens=tuple(t.id for t in known[0].tokens)) if known else Prompt()
    shared = SharedPrompt(file, prompt or own, prepare.encode(file, prompt or own))
    ask.emit(Start(n_layer=file.arch.n_layer, tokens=shared.tokens))
    side_a, trace_a = _take(sides[0], SideName.A, shared, ask)
    side_b, trace_b = _take(sides[1], SideName.B, shared, ask)
    return by_identity(judge_external(side_a, side_b, trace_a, trace_b, ask), known, file)


@dataclass(frozen=True, slots=True)
class LiveSide:
    """A model file that our own forward runs."""

    source: Source
    file: OpenedModel


@dataclass(frozen=True, slots=True)
class EngineSide:
    """A file or folder that another engine runs. file: None for a folder, whose weights are not read here."""

    source: Source
    file: OpenedModel | None


@dataclass(frozen=True, slots=True)
class SavedTrace:
    """A bundle: what was run before."""

    source: Source
    trace: Trace


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """What both sides are fed. file: whose weights stand for those of a side without a file of its own."""

    file: OpenedModel
    prompt: Prompt
    tokens: tuple[Token, ...]

    def tokens_of(self, file: OpenedModel) -> tuple[Token, ...]:
        """The prompt as that file encodes it; where it has no usable tokenizer, the other file's tokens."""
        return self.tokens if file.tokenizer.refusal else prepare.encode(file, self.prompt)


def open_side(source: Source, saved: Trace | None) -> LiveSide | EngineSide | SavedTrace:
    """Open what a side is; saved: the bundle's trace, where it is one. FileError."""
    if saved is not None:
        return SavedTrace(source, saved)
    if not source.scheme:
        return LiveSide(source, prepare.open_once(source.path))
    return EngineSide(source, _file(source))


def _take(
    side: LiveSide | EngineSide | SavedTrace, name: SideName, shared: SharedPrompt, ask: CompareOptions
) -> tuple[Party, Trace]:
    """Make a side ready to be judged; another engine is run here, a model file only later."""
    match side:
        case LiveSide(source, file):
            model = prepare.prepare_opened(file, shared.tokens_of(file), source, ask.emit)
            live = prepare.make_side(model, source, ask.emit)
            return live, prepare.empty_trace(live, model)
        case SavedTrace(source, trace):
            return _capture(source, trace, shared.file, ask, borrowed=False), trace
        case EngineSide(source, own):
            file = own or shared.file
            trace = _identified(trace_engine(
                source, shared.tokens_of(file), file.tokenizer.token_text, beside=file.file.path, side=name,
                emit=ask.emit, cancelled=ask.cancelled), own)
            return _capture(source, trace, file, ask, borrowed=own is None), trace


def _capture(source: Source, trace: Trace, file: OpenedModel, ask: CompareOptions, *, borrowed: bool) -> ExternalRun:
    """The trace's values, with the file's model at the compute that the trace declares."""
    from core.proof.capture import ExternalRun, declared

    live = replace(source, scheme="", compute=trace.facts.compute or source.compute, plant=None)
    side = prepare.make_side(prepare.prepare_opened(file, trace.tokens, live, ask.emit), live, ask.emit)
    side = declared(side, trace.facts.kernel)
    return ExternalRun(side, trace.values or {}, borrowed)


def _may_have_values_of(trace: Trace, file: OpenedModel) -> bool:
    """Say whether a saved trace has values, and the header of this file; whether it is this file, its digest says."""
    is_of_file = trace.origin.get("header_sha256") == file.file.header_sha256
    return trace.values is not None and is_of_file and bool(trace.tokens)


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
    return None if source.scheme and source.path.is_dir() else prepare.open_once(source.path)


def _encode(source: Source, file: OpenedModel | None, prompt: Prompt) -> tuple[tuple[Token, ...], TextOf]:
    if file is None:
        return folder_tokens(source.path, prompt)
    return prepare.encode(file, prompt), file.tokenizer.token_text


def _identified(traced: Trace, model: OpenedModel | None) -> Trace:
    """The trace with the identity of the file that its engine read."""
    if model is None:
        return traced
    file = model.file
    return replace(traced, identity=model.identity, origin={
        **traced.origin, "format": file.format, "size_bytes": file.size_bytes, "header_sha256": file.header_sha256})


def _reach(errors: Mapping[Place, LocalError]) -> tuple[bool, tuple[int, int]]:
    """How far a check came: whether it passed, else the order of its first bad place."""
    bad = [p for p, e in errors.items() if e.is_bad]
    return (not bad, min((place_order(p) for p in bad), default=(0, 0)))
