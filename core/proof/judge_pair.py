"""Judge B against A, bottom up: are they comparable, what do the cells say, and what is the lowest cause.

The rules are DESIGN's: tokens and hyper-parameters first, weights next, activations last.
measure_pair.py measures, explain.py names the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from core.model.stages import GRID_STAGES, place_text
from core.proof.comparability import differing_facts, differing_vocabularies
from core.proof.compare_saved import diff_stats, undeclared_alike, value_cells
from core.proof.explain import explain, name_weights, unexplained_by
from core.proof.measure_pair import CompareOptions, SideMeasurement, run_pair
from core.proof.outlier_channel import find_outlier
from core.proof.route_share import route_reasons
from core.proof.verdict import Comparison, Doubt, Evidence, Verdict
from core.proof.weights.file_diff import FileDiff, diff_files, listed
from core.proof.weights.weight_diff import differing_keys
from core.system.progress import Phase
from core.trace.events import no_emit
from core.trace.hints import find_hints
from core.trace.measures import NOISE_MULTIPLE, PROOF_MULTIPLE, Difference, State
from core.trace.record import Trace
from core.trace.run import Side, top_tokens

NO_DIFF = FileDiff()


def judge(a: Side, b: Side, trace_a: Trace, trace_b: Trace, ask: CompareOptions) -> Comparison:
    """Run two sides in lockstep and judge B against A; trace_a and trace_b say how they are taken and are filled in."""
    found = Evidence(trace_a, trace_b, ask.scope)
    blocks = differing_facts(trace_a, trace_b, ask.scope) + differing_vocabularies(a.model.file, b.model.file)
    if blocks:
        return found.conclude(Verdict.NOT_COMPARABLE, *blocks)
    ask.emit(Phase("comparing"))
    pair = run_pair(a, b, found.token_ids, ask)
    found = replace(found, a=fill_in(trace_a, a, pair.a), b=fill_in(trace_b, b, pair.b), cells=pair.cells,
                    alike=pair.alike)
    ask.emit(Phase("comparing weights"))
    files = diff_files(a, b, ask.cancelled)
    differing, unclear = found.places(State.DIFFERS), found.places(State.UNCLEAR)
    if not differing and not unclear:
        return agreement(found, ask, files)
    parted = replace(found, first=(differing or unclear)[0])
    explained = explain(a, b, parted, files, ask, lambda errors: _choose(a, b, parted, files, ask))
    explained = replace(explained, reasons=(*explained.reasons, *route_reasons(a, b, pair.cells, found.token_ids, ask)))
    proven = explained.verdict is Verdict.H3 or explained.error is not None  # by a choice, or by float64
    return explained if differing or proven else agreement(found, ask, files)


def judge_saved(left: Trace, right: Trace, ask: CompareOptions) -> Comparison:
    """Judge two traces of which at least one is saved and cannot be run again: by values, else by statistics."""
    found = Evidence(left, right, ask.scope)
    blocks = differing_facts(left, right, ask.scope)
    if blocks:
        return found.conclude(Verdict.NOT_COMPARABLE, *blocks)
    found = replace(found, cells=value_cells(left, right, ask.scope))
    if set(GRID_STAGES) <= {stage for _, stage in found.cells}:
        return _judge_values(found, ask)
    return _judge_stats(found, ask)


def _judge_stats(found: Evidence, ask: CompareOptions) -> Comparison:
    """Judge by statistics: equal ones agree where all of them were seen, other ones are named and prove nothing."""
    stats = diff_stats(found.a, found.b, found.scope)
    keys = _saved_keys(found).sentences()
    if not stats.sentences and keys:
        return found.conclude(Verdict.INCONCLUSIVE, f"all statistics are equal, yet {listed(keys)}",
                              why=Doubt.UNREACHED)
    if not stats.sentences and stats.n_mean:
        return found.conclude(
            Verdict.INCONCLUSIVE, f"of {stats.n_mean} cells a side shows no std; their means are equal, which other "
            "values may have as well: take values of every stage", why=Doubt.STATISTICS)
    if not stats.sentences:
        shared = _shared_hint(found, ask)
        both = f"; both sides show it: {shared}" if shared else ""
        return found.conclude(Verdict.H1 if shared else Verdict.AGREE,
                              f"all statistics are equal within their printed precision{both}")
    if stats.first is None:
        return found.conclude(
            Verdict.INCONCLUSIVE, f"no statistic differs of those that both show; {len(stats.sentences)} cells are not "
            f"judged, first {stats.sentences[0]}", *keys, why=Doubt.INCOMPLETE)
    return replace(found, first=stats.first).conclude(
        Verdict.INCONCLUSIVE, f"{len(stats.sentences)} cells have other statistics, first {stats.sentences[0]}", *keys,
        "statistics cannot tell a bug from a choice: compare the model files, or bundles written with --values",
        why=Doubt.STATISTICS)


def fill_in(trace: Trace, side: Side, taken: SideMeasurement | None) -> Trace:
    """The trace with what its side's run left."""
    assert taken is not None
    return replace(trace, cells=taken.cells, top=top_tokens(side.tokenizer, taken.logits),
                   observed_equals_unobserved=taken.same_logits, values=taken.values)


def agreement(found: Evidence, ask: CompareOptions, files: FileDiff = NO_DIFF) -> Comparison:
    """No cell differs: AGREE, H1, or INCONCLUSIVE where some cell is near its floor, or the files differ all the same.

    It has the worst cell's numbers.
    """
    worst = max(found.cells, key=lambda p: multiple_of(found.cells[p], found.alike), default=None)
    cell = found.cells[worst] if worst is not None else None
    unread = files.sentences()
    yet = (f"no cell differs on this prompt, yet {listed(unread)}",) if unread else ()
    if cell is not None and worst is not None and cell.state is State.UNCLEAR:
        concluded = found.conclude(
            Verdict.INCONCLUSIVE, *yet,
            f"{place_text(worst)} differs by {_size_of(cell, found.alike):.2g}, {multiple_of(cell, found.alike):.1f} x "
            f"its floor: above noise ({NOISE_MULTIPLE:.0f} x), below proof ({PROOF_MULTIPLE:.0f} x). Try a longer "
            "prompt.",
            why=Doubt.UNREACHED if yet else Doubt.NEAR)
        concluded = replace(concluded, token=cell.token, channel=cell.channel)
    elif yet:
        concluded = found.conclude(Verdict.INCONCLUSIVE, *yet, "a prompt that reaches it shows what it does",
                                   why=Doubt.UNREACHED)
    else:
        concluded = _agreed(found, ask, files)
    return concluded if cell is None else replace(
        concluded, measured=_size_of(cell, found.alike), floor=cell.floor)


def _agreed(found: Evidence, ask: CompareOptions, files: FileDiff) -> Comparison:
    shared = _shared_hint(found, ask)
    same = "no cell differs by itself" if found.alike else "no cell differs"
    same += f" beyond {NOISE_MULTIPLE:.0f} x {'rounding' if found.alike else 'its measured floor'}"
    rounded = (name_weights(files),) if files.rounded else ()
    return (found.conclude(Verdict.H1, f"{same}; both sides show it: {shared}", *rounded) if shared
            else found.conclude(Verdict.AGREE, same, *rounded))


def multiple_of(cell: Difference, alike: bool = False) -> float:
    """How many floors a cell differs by; 0 where it has no floor. alike: by its local error."""
    size = _size_of(cell, alike)
    return size / cell.floor if size is not None and cell.floor else 0.0


def _size_of(cell: Difference, alike: bool) -> float | None:
    return cell.local if alike else cell.rel_l2


def _shared_hint(found: Evidence, ask: CompareOptions) -> str | None:
    """The first hint that names the same cell on both sides."""
    left, right = (find_hints(t, scope=ask.scope, threshold=ask.threshold) for t in (found.a, found.b))
    named = {f.place for f in right}
    return next((f.sentence for f in left if f.place in named), None)


def _choose(a: Side, b: Side, found: Evidence, files: FileDiff, ask: CompareOptions) -> Comparison:
    """H3 where weights are rounded otherwise, or where A's file, run as B declares it, gives B's values; else H2."""
    named = (name_weights(files),) if files.chosen else ()
    if found.alike:
        return _choose_alike(found, files, *named)
    declared = f"declared: compute {_declared(a)} against {_declared(b)}"
    ask.emit(Phase(f"re-running A as B declares it ({b.compute})"))
    again = replace(a, model=replace(a.model, device=b.model.device, kv=b.model.kv), compute=b.compute)
    pair = run_pair(again, b, found.token_ids, replace(ask, emit=no_emit, keep_values=False, control=False))
    left = unexplained_by(files, pair.cells)
    if left is not None:
        cell = pair.cells[left]
        unlike = found.conclude(Verdict.H2, f"{declared}; but A re-run so still differs from B at {place_text(left)}",
                                *named)
        return replace(unlike, first=left, token=cell.token, channel=cell.channel, measured=cell.rel_l2,
                       floor=cell.floor)
    outlier = find_outlier(found.a, found.b) if "q8" in (a.compute, b.compute) else None
    rerun = f"{declared}; A re-run so gives B's values within the floor" + (
        " but for its weights' rounding" if named else "")
    return found.conclude(Verdict.H3, rerun, *named, *((outlier,) if outlier else ()))


def _declared(side: Side) -> str:
    cache = "" if side.model.kv.is_exact else f", KV cache {side.model.kv.text}"
    return f"{side.compute} on {side.model.device}{cache}"


def _choose_alike(found: Evidence, files: FileDiff, *named: str) -> Comparison:
    left = unexplained_by(files, found.cells)
    if named and left is None:
        return found.conclude(Verdict.H3, *named, "each side is right by its own weights in float64")
    return replace(found, first=left or found.first).conclude(
        Verdict.H2, "the weights that this place reads, the hyper-parameters and the compute are the same, yet the "
        "values differ; each single stage is within its floor of float64 on both sides", *named)


def _saved_keys(found: Evidence) -> FileDiff:
    """The hyper-parameters that differ between two traces that say them."""
    a, b = (t.origin.get("arch") for t in (found.a, found.b))
    return FileDiff(differing_keys(a, b)) if isinstance(a, Mapping) and isinstance(b, Mapping) else NO_DIFF


def _judge_values(found: Evidence, ask: CompareOptions) -> Comparison:
    differing, absent = found.places(State.DIFFERS), found.places(State.ABSENT)
    if not differing and absent:
        return found.conclude(
            Verdict.INCONCLUSIVE, f"no cell differs, but {len(absent)} have no values on one side or another shape, "
            f"first {place_text(absent[0])}", why=Doubt.INCOMPLETE)
    if not differing:
        return agreement(found, ask, _saved_keys(found))
    found = replace(found, first=differing[0])
    cell = found.cells[differing[0]]
    reasons = (f"{place_text(differing[0])} differs by {cell.rel_l2:.2g}",
               f"no weights at hand: the floor is not measured ({cell.floor:.2g} is taken) and no side is found wrong")
    keys, choices = _saved_keys(found).sentences(), undeclared_alike(found.a, found.b)
    if choices:
        return found.conclude(Verdict.INCONCLUSIVE, *reasons, *keys, *choices, "compare the model files",
                              why=Doubt.UNDECLARED)
    return found.conclude(Verdict.H2, *reasons, *keys)
