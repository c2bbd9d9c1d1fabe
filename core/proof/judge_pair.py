"""Judge B against A, bottom up: are they comparable, what do the cells say, and what is the lowest cause.

The rules are DESIGN's: tokens and hyper-parameters first, weights next, activations last.
measure_pair.py measures, check.py checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.model.stages import GRID, Place, place_order, place_text
from core.proof.check import replay
from core.proof.comparability import differing_facts, differing_vocabularies
from core.proof.compare_saved import differing_stats, undeclared_alike, value_cells
from core.proof.measure_pair import Pair, run_pair
from core.proof.outlier_channel import crush
from core.proof.verdict import Check, Comparison
from core.proof.weight_diff import WeightDiff, key_diffs, weight_diffs
from core.system.cancel import IsCancelled
from core.trace.events import Emit, Event
from core.trace.hints import find_hints
from core.trace.measures import CLEAR, SAME, Difference, LocalError
from core.trace.record import Trace
from core.trace.run import SEED, Side, top_tokens
from core.trace.taps import no_tap

NAMED_WEIGHTS = 3  # in a reason; the rest are counted


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a pair, beside the pair itself."""

    scope: str
    threshold: float
    emit: Emit
    cancelled: IsCancelled
    keep_values: bool = False


def judge(a: Side, b: Side, trace_a: Trace, trace_b: Trace, ask: Question) -> Comparison:
    """Run two sides in lockstep and judge B against A; trace_a and trace_b say how they are taken and are filled in."""
    blocks = differing_facts(trace_a, trace_b, ask.scope) + differing_vocabularies(a.model.file, b.model.file)
    if blocks:
        return Comparison("NOT_COMPARABLE", tuple(blocks), trace_a, trace_b, ask.scope)
    ids = [t.id for t in trace_a.tokens]
    ask.emit(Event("phase", "comparing"))
    kept: tuple[dict[Place, object], dict[Place, object]] | None = ({}, {}) if ask.keep_values else None
    pair = run_pair(a, b, ids, scope=ask.scope, seed=SEED, emit=ask.emit, keep=kept, cancelled=ask.cancelled)  # type: ignore[arg-type]
    trace_a, trace_b = (
        replace(t, cells=c, top=top_tokens(s.tokenizer, logits), observed_equals_unobserved=same,
                values=None if kept is None else kept[i])
        for i, (t, c, s, logits, same) in enumerate(zip(
            (trace_a, trace_b), (pair.a, pair.b), (a, b), pair.logits, pair.witnesses, strict=True)))
    differing = [p for p in sorted(pair.cells, key=place_order) if pair.cells[p].state == "differs"]
    done = Comparison("", (), trace_a, trace_b, ask.scope, cells=pair.cells)
    unclear = [p for p in sorted(pair.cells, key=place_order) if pair.cells[p].state == "unclear"]
    if not differing and not unclear:
        return agreement(done, ask)
    explained = _explain(a, b, done, (differing or unclear)[0], ids, ask)
    proven = explained.verdict == "H3" or explained.error is not None  # by a choice, or by float64
    return explained if differing or proven else agreement(done, ask)


def judge_saved(left: Trace, right: Trace, ask: Question) -> Comparison:
    """Judge two traces of which at least one is saved and cannot be run again: by values, else by statistics."""
    blocks = differing_facts(left, right, ask.scope)
    done = Comparison("", (), left, right, ask.scope)
    if blocks:
        return replace(done, verdict="NOT_COMPARABLE", reasons=tuple(blocks))
    cells = value_cells(left, right, ask.scope)
    done = replace(done, cells=cells)
    if set(GRID) <= {stage for _, stage in cells}:
        return _judge_values(done, ask)
    differing = differing_stats(left, right, ask.scope)
    if not differing:
        shared = _shared_hint(done, ask)
        both = f"; both sides show it: {shared}" if shared else ""
        return replace(done, verdict="H1" if shared else "AGREE", reasons=(
            f"all statistics are equal within their printed precision{both}",))
    return replace(done, verdict="INCONCLUSIVE", reasons=(
        f"{len(differing)} cells have other statistics, first {differing[0]}",
        "statistics cannot tell a bug from a choice: compare the model files, or bundles written with --values"))


def agreement(done: Comparison, ask: Question) -> Comparison:
    """No cell differs: AGREE, H1, or INCONCLUSIVE where some cell is near its floor."""
    worst = max(done.cells, key=lambda p: multiple_of(done.cells[p]), default=None)
    cell = done.cells[worst] if worst is not None else None
    if cell is not None:
        done = replace(done, measured=cell.rel_l2, floor=cell.floor)
    if cell is not None and worst is not None and cell.state == "unclear":
        return replace(done, verdict="INCONCLUSIVE", token=cell.token, channel=cell.channel, reasons=(
            f"{place_text(worst)} differs by {cell.rel_l2:.2g}, {multiple_of(cell):.1f} x its floor: above noise "
            f"({SAME:.0f} x), below proof ({CLEAR:.0f} x). Try a longer prompt.",))
    shared = _shared_hint(done, ask)
    same = f"no cell differs beyond {SAME:.0f} x its measured floor"
    if shared:
        return replace(done, verdict="H1", reasons=(f"{same}; both sides show it: {shared}",))
    return replace(done, verdict="AGREE", reasons=(same,))


def _shared_hint(done: Comparison, ask: Question) -> str | None:
    """The first hint that names the same cell on both sides."""
    left, right = (find_hints(t, scope=ask.scope, threshold=ask.threshold) for t in (done.a, done.b))
    named = {f.place for f in right}
    return next((f.sentence for f in left if f.place in named), None)


def _explain(a: Side, b: Side, done: Comparison, first: Place, ids: list[int], ask: Question) -> Comparison:
    """A cell differs: find the side that float64 finds wrong, else the lowest declared choice or cause."""
    cell = done.cells[first]
    done = replace(done, first=first, token=cell.token, channel=cell.channel, measured=cell.rel_l2, floor=cell.floor)
    ask.emit(Event("phase", "comparing weights"))
    keys = key_diffs(a.model.arch, b.model.arch)
    weights = [] if a.model.file is b.model.file else weight_diffs(a.model.file, b.model.file, ask.cancelled)
    choices = (a.compute, a.model.device) != (b.compute, b.model.device)
    chosen = choices or any(w.is_explained for w in weights)
    ask.emit(Event("phase", "checking both sides against float64"))
    last = None if chosen else first[0] if first[0] is not None or first[1] != "embedding" else 0
    wrong = {}
    for name, side, traced in (("A", a, done.a), ("B", b, done.b)):
        errors, _ = replay(side, ids, watch=no_tap, last_layer=last, cancelled=ask.cancelled)
        place = Check(traced, errors).first
        if place is not None:
            wrong[name] = (place, errors[place])
    if wrong:
        return proven_bug(done, wrong)
    blamed = blame_file(done, keys, weights)
    if blamed is not None:
        return blamed
    if weights and not choices:
        return replace(done, verdict="H3", reasons=(
            name_weights(weights), "each side is right by its own weights in float64"))
    if choices:
        return _choice(a, b, done, weights, ids, ask)
    return replace(done, verdict="H2", reasons=(
        "same weights, same hyper-parameters and same compute, yet the values differ; "
        "each single stage is within its floor of float64 on both sides",))


def blame_file(done: Comparison, keys: Sequence[str], weights: Sequence[WeightDiff]) -> Comparison | None:
    """H2 (or INCONCLUSIVE) where a hyper-parameter or a weight differs by more than rounding; None where none does."""
    if keys:
        return replace(done, verdict="H2", reasons=(*(f"hyper-parameter {k}" for k in keys), _each_right()))
    changed = [w for w in weights if not w.is_explained]
    unknown = [w for w in changed if w.is_unmeasured]
    if unknown and unknown == changed:
        return replace(done, verdict="INCONCLUSIVE", reasons=(
            name_weights(unknown), "a type among them has no measured row"))
    if changed:
        known = [w for w in changed if not w.is_unmeasured]
        return replace(done, verdict="H2", reasons=(name_weights(known), _each_right()))
    return None


def proven_bug(done: Comparison, wrong: Mapping[str, tuple[Place, LocalError]]) -> Comparison:
    """H2 with a proof: the first place that float64 finds wrong, and the side (None where both are wrong)."""
    side, (place, error) = min(wrong.items(), key=lambda item: place_order(item[1][0]))
    cell = done.cells.get(place)  # absent where the scope does not cover it, as logits at scope first
    reason = (f"{place_text(place)} of {side} is not what float64 makes of its own inputs and weights: "
              f"NMSE {error.nmse:.2g}, floor {error.limit:.2g}; token {error.token}, channel {error.channel}")
    later = [p for p, c in done.cells.items() if c.state == "differs" and place_order(p) > place_order(place)]
    both = len(wrong) > 1 and len({p for p, _ in wrong.values()}) == 1
    return replace(
        done, verdict="H2", first=place, side=None if both else side, error=error, token=error.token,
        channel=error.channel,
        measured=cell.rel_l2 if cell else None, floor=cell.floor if cell else None,
        reasons=(reason, *((error.span_text,) if error.span else ()),
                 *((f"looks like this: {error.guess}",) if error.guess else ()),
                 *((f"{len(later)} later cells differ: downstream",) if later else ())))


def _choice(
    a: Side, b: Side, done: Comparison, weights: Sequence[WeightDiff], ids: list[int], ask: Question
) -> Comparison:
    """H3 where A's file, run as B declares it, gives B's values; else H2."""
    says = f"compute {a.compute} on {a.model.device} against {b.compute} on {b.model.device}"
    if weights:
        return replace(done, verdict="H3", reasons=(
            f"declared: {says}", name_weights(weights), "each side is right by its own weights"))
    ask.emit(Event("phase", f"re-running A as B declares it ({b.compute})"))
    again = replace(a, model=replace(a.model, device=b.model.device), compute=b.compute)
    pair: Pair = run_pair(again, b, ids, scope=ask.scope, seed=SEED, witness=False, emit=lambda event: None,
                          cancelled=ask.cancelled)
    left = [p for p, c in pair.cells.items() if c.state == "differs"]
    if left:
        return replace(done, verdict="H2", reasons=(
            f"declared: {says}; but A re-run so still differs from B at {place_text(min(left, key=place_order))}",))
    crushed = crush(done.a, done.b) if "q8" in (a.compute, b.compute) else None
    return replace(done, verdict="H3", reasons=(
        f"declared: {says}; A re-run so gives B's values within the floor", *((crushed,) if crushed else ())))


def name_weights(diffs: Sequence[WeightDiff]) -> str:
    """Name the first few weights that differ, and count the rest."""
    parts = []
    for w in diffs[:NAMED_WEIGHTS]:
        rounding = f"; their rounding leaves {w.bound:.2g}" if w.bound is not None else ""
        row = "" if w.is_explained else f", most in row {w.row}"
        types = f"{w.quant_a} in A, {w.quant_b} in B"
        parts.append(f"{w.name} differs by {w.relative:.2g} relative ({types}{rounding}{row})")
    more = len(diffs) - NAMED_WEIGHTS
    return "weights: " + "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _each_right() -> str:
    return "each side is right by its own weights in float64, so that neither is named as the wrong one"


def multiple_of(cell: Difference) -> float:
    """How many floors a cell differs by; 0 where it has no floor."""
    return cell.rel_l2 / cell.floor if cell.rel_l2 is not None and cell.floor else 0.0


def _judge_values(done: Comparison, ask: Question) -> Comparison:
    differing = [p for p in sorted(done.cells, key=place_order) if done.cells[p].state == "differs"]
    absent = [p for p in sorted(done.cells, key=place_order) if done.cells[p].state == "absent"]
    if not differing and absent:
        return replace(done, verdict="INCONCLUSIVE", reasons=(
            f"no cell differs, but {len(absent)} have no values on one side or another shape, "
            f"first {place_text(absent[0])}",))
    if not differing:
        return agreement(done, ask)
    first, cell = differing[0], done.cells[differing[0]]
    done = replace(done, first=first, token=cell.token, channel=cell.channel, measured=cell.rel_l2, floor=cell.floor)
    reasons = [f"{place_text(first)} differs by {cell.rel_l2:.2g}",
               f"no weights at hand: the floor is not measured ({cell.floor:.2g} is taken) and no side is found wrong"]
    choices = undeclared_alike(done.a, done.b)
    if choices:
        return replace(done, verdict="INCONCLUSIVE", reasons=(*reasons, *choices, "compare the model files"))
    return replace(done, verdict="H2", reasons=tuple(reasons))
