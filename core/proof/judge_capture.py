"""Judge B against A where a side is a capture: another engine's values, or a bundle's. The rules are judge_pair.py's.

What differs from two live sides: a capture cannot be re-run as the other declares, so our forward at its declared
compute must give its values; or each of its stages is what float64 makes of its own inputs, from end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.model.stages import Place, place_text
from core.proof.capture import ExternalRun, is_whole, measure_external, misfits, run_on_external
from core.proof.comparability import differing_facts, differing_vocabularies
from core.proof.explain import Errors, Party, explain, name_weights, side_of
from core.proof.judge_pair import agreement, fill_in, multiple_of
from core.proof.measure_pair import CompareOptions, PairMeasurement, compute_alike, unit_of
from core.proof.outlier_channel import find_outlier
from core.proof.route_share import route_reasons
from core.proof.verdict import Comparison, Doubt, Evidence, Verdict
from core.proof.weights.file_diff import FileDiff, diff_files
from core.system.progress import Phase
from core.trace.events import no_emit
from core.trace.measures import SideName, State
from core.trace.record import Trace
from core.trace.run import Side

CHOICES = ("engine", "compute", "device", "threads")  # facts of a trace that may explain a difference in values


@dataclass(frozen=True, slots=True)
class _Reproduced:
    """How far our forward at a capture's declared compute is from it. left: the first place that is not its own."""

    compute: str
    at_first: float | None
    left: Place | None
    multiple: float


def judge_external(a: Party, b: Party, trace_a: Trace, trace_b: Trace, ask: CompareOptions) -> Comparison:
    """Judge B against A: a live side is run and its trace filled in, a capture's values and trace stand."""
    found = Evidence(trace_a, trace_b, ask.scope)
    blocks = _blocks(a, b, found)
    if blocks:
        return found.conclude(Verdict.NOT_COMPARABLE, *blocks)
    ask.emit(Phase("comparing"))
    pair = _measure(a, b, found, ask)
    traces = [fill_in(trace, party, taken) if isinstance(party, Side) else trace
              for party, trace, taken in zip((a, b), (trace_a, trace_b), (pair.a, pair.b), strict=True)]
    found = replace(found, a=traces[0], b=traces[1], cells=pair.cells, alike=pair.alike)
    if not pair.cells:
        return found.conclude(Verdict.NOT_COMPARABLE, "no stage is there on both sides")
    ask.emit(Phase("comparing weights"))
    files = diff_files(side_of(a), side_of(b), ask.cancelled)
    differing = found.places(State.DIFFERS)
    if differing:
        parted = replace(found, first=differing[0])
        explained = explain(a, b, parted, files, ask, lambda errors: _choose(a, b, parted, files, errors, ask))
        routes = route_reasons(a, b, pair.cells, found.token_ids, ask)
        return replace(explained, reasons=(*explained.reasons, *routes))
    partial = [name for name, capture in _captures(a, b).items() if not _is_whole(capture)]
    if partial:
        return found.conclude(
            Verdict.INCONCLUSIVE,
            f"no cell differs of those that {' and '.join(partial)} shows, but not every layer's output is there",
            why=Doubt.INCOMPLETE)
    return agreement(found, ask, files)


def _measure(a: Party, b: Party, found: Evidence, ask: CompareOptions) -> PairMeasurement:
    """Run what is live beside what was captured; on its inputs where this forward made it and computes alike."""
    sides, captures = (side_of(a), side_of(b)), _captures(a, b)
    if len(captures) == 1 and found.a.facts.engine == found.b.facts.engine and compute_alike(*sides):
        (name, capture), = captures.items()
        live = next(p for p in (a, b) if isinstance(p, Side))
        return run_on_external(live, capture.values, name, found.token_ids, ask)
    live = next((p for p in (a, b) if isinstance(p, Side)), min(sides, key=unit_of))
    values_a, values_b = (p.values if isinstance(p, ExternalRun) else None for p in (a, b))
    return measure_external(live, values_a, values_b, found.token_ids, ask, unit_of(*sides))


def _captures(a: Party, b: Party) -> dict[SideName, ExternalRun]:
    return {name: p for name, p in zip(SideName, (a, b), strict=True) if isinstance(p, ExternalRun)}


def _is_whole(capture: ExternalRun) -> bool:
    return is_whole(capture.values, capture.side.model.arch.n_layer)


def _blocks(a: Party, b: Party, found: Evidence) -> list[str]:
    blocks = differing_facts(found.a, found.b, found.scope)
    blocks += differing_vocabularies(side_of(a).model.file, side_of(b).model.file)
    for name, capture in _captures(a, b).items():
        wrong = misfits(capture.values, capture.side.model.arch, len(found.a.tokens))
        blocks += [f"{name}: {line}" for line in wrong[:1]]
    return blocks


def _choose(
    a: Party, b: Party, found: Evidence, files: FileDiff, errors: Mapping[SideName, Errors], ask: CompareOptions
) -> Comparison:
    """H3 where a declared choice gives the capture's values, or every stage of every capture is right by itself."""
    captures = _captures(a, b)
    said = _declared(found.a, found.b)
    right = tuple(_right(name, capture, errors[name]) for name, capture in captures.items())
    if not said and not files.chosen:
        return found.conclude(Verdict.H2, "everything declared is alike, yet the values differ", *right)
    declared = "declared: " + "; ".join(said or ["other types of weight"])
    runs = {name: _reproduce(capture, found, ask) for name, capture in captures.items()}
    again = tuple(_again(name, run, found) for name, run in runs.items())
    if all(map(_is_whole, captures.values())) or all(run.left is None for run in runs.values()):
        named = (name_weights(files),) if files.chosen else ()
        outlier = find_outlier(found.a, found.b) if any(side_of(p).compute == "q8" for p in (a, b)) else None
        return found.conclude(Verdict.H3, declared, *again, *right, *named, *((outlier,) if outlier else ()))
    return found.conclude(Verdict.INCONCLUSIVE, declared, *again, *right,
                          "a capture lacks stages, so that a bug may hide in what is not shown", why=Doubt.INCOMPLETE)


def _declared(a: Trace, b: Trace) -> list[str]:
    """The facts that two traces do not share, among those that change values."""
    pairs = [(name, getattr(a.facts, name), getattr(b.facts, name)) for name in CHOICES]
    return [f"{name} {x} in A, {y} in B" for name, x, y in pairs if x != y]


def _reproduce(capture: ExternalRun, found: Evidence, ask: CompareOptions) -> _Reproduced:
    """Run our forward at the capture's declared compute beside its values."""
    assert found.first is not None
    side = capture.side
    ask.emit(Phase(f"running its file at its declared compute ({side.compute})"))
    pair = measure_external(side, None, capture.values, found.token_ids,
                      replace(ask, emit=no_emit, keep_values=False, control=False), unit_of(side))
    left = next(iter(replace(found, cells=pair.cells).places(State.DIFFERS)), None)
    at_first = pair.cells[found.first].rel_l2 if found.first in pair.cells else None
    return _Reproduced(side.compute, at_first, left, multiple_of(pair.cells[left]) if left else 0.0)


def _again(name: SideName, run: _Reproduced, found: Evidence) -> str:
    assert found.first is not None
    apart = found.cells[found.first].rel_l2 or 0
    near = "" if run.at_first is None else (
        f"; at {place_text(found.first)} it is {run.at_first:.2g} away, A and B are {apart:.2g} apart")
    if run.left is None:
        return f"our forward at compute {run.compute} gives the values of {name} within the floor{near}"
    return (f"our forward at compute {run.compute} leaves {place_text(run.left)} of {name} {run.multiple:.0f} x its "
            f"floor away: rounding in another order, grown through the layers{near}")


def _right(name: SideName, capture: ExternalRun, errors: Errors) -> str:
    far = max((e.declared for e in errors.values() if e.declared is not None), default=0.0)
    return (f"each of {len(errors)} stages of {name} is what float64 makes of its own inputs, within its compute; and "
            f"what compute {capture.side.compute} makes of them, to {far:.1e}")
