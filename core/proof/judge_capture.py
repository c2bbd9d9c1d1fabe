"""Judge B against A where a side is a capture: another engine's values, or a bundle's. The rules are judge_pair.py's.

What differs from two live sides: a capture cannot be re-run as the other declares, so our forward at its declared
compute must give its values; or each of its stages is what float64 makes of its own inputs, from end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.model.stages import Place, place_order, place_text
from core.proof.capture import Capture, is_whole, misfits, run_beside, unit_of
from core.proof.check import replay
from core.proof.comparability import differing_facts, differing_vocabularies
from core.proof.judge_pair import Question, agreement, blame_file, multiple_of, name_weights, proven_bug
from core.proof.outlier_channel import crush
from core.proof.verdict import Check, Comparison
from core.proof.weight_diff import WeightDiff, key_diffs, weight_diffs
from core.trace.events import Event
from core.trace.measures import LocalError
from core.trace.record import Trace
from core.trace.run import SEED, Side, top_tokens
from core.trace.taps import no_tap

CHOICES = ("engine", "compute", "device", "threads")  # facts of a trace that may explain a difference in values

Party = Side | Capture
Errors = Mapping[Place, LocalError]


@dataclass(frozen=True, slots=True)
class _Reproduced:
    """How far our forward at a capture's declared compute is from it. left: the first place that is not its own."""

    compute: str
    at_first: float | None
    left: Place | None
    multiple: float


def judge_captured(a: Party, b: Party, trace_a: Trace, trace_b: Trace, ask: Question) -> Comparison:
    """Judge B against A: a live side is run and its trace filled in, a capture's values and trace stand."""
    done = Comparison("", (), trace_a, trace_b, ask.scope)
    blocks = _blocks(a, b, done)
    if blocks:
        return replace(done, verdict="NOT_COMPARABLE", reasons=tuple(blocks))
    ask.emit(Event("phase", "comparing"))
    sides = side_of(a), side_of(b)
    live = next((p for p in (a, b) if isinstance(p, Side)), min(sides, key=unit_of))
    kept: dict[Place, object] | None = {} if ask.keep_values else None
    values = [p.values if isinstance(p, Capture) else None for p in (a, b)]
    pair = run_beside(
        live, values[0], values[1], _ids(done), scope=ask.scope, seed=SEED, unit=unit_of(*sides), emit=ask.emit,
        keep=kept, cancelled=ask.cancelled)  # type: ignore[arg-type]
    traces = []
    for party, trace, cells, same in zip((a, b), (trace_a, trace_b), (pair.a, pair.b), pair.witnesses, strict=True):
        if isinstance(party, Side):
            trace = replace(trace, cells=cells, top=top_tokens(party.tokenizer, pair.logits[0]),
                            observed_equals_unobserved=same, values=kept)
        traces.append(trace)
    done = replace(done, a=traces[0], b=traces[1], cells=pair.cells)
    differing = [p for p in sorted(pair.cells, key=place_order) if pair.cells[p].state == "differs"]
    if not pair.cells:
        return replace(done, verdict="NOT_COMPARABLE", reasons=("no stage is there on both sides",))
    if differing:
        return _explain(a, b, done, differing[0], ask)
    partial = [n for n, p in (("A", a), ("B", b))
               if isinstance(p, Capture) and not is_whole(p.values, p.side.model.arch.n_layer)]
    if partial:
        return replace(done, verdict="INCONCLUSIVE", reasons=(
            f"no cell differs of those that {' and '.join(partial)} shows, but not every layer's output is there",))
    return agreement(done, ask)


def side_of(party: Party) -> Side:
    """The live side, or the model and declared compute behind a capture."""
    return party.side if isinstance(party, Capture) else party


def _ids(done: Comparison) -> list[int]:
    return [t.id for t in done.a.tokens]


def _blocks(a: Party, b: Party, done: Comparison) -> list[str]:
    blocks = differing_facts(done.a, done.b, done.scope)
    blocks += differing_vocabularies(side_of(a).model.file, side_of(b).model.file)
    for name, party in (("A", a), ("B", b)):
        if isinstance(party, Capture):
            wrong = misfits(party.values, party.side.model.arch, len(done.a.tokens))
            blocks += [f"{name}: {line}" for line in wrong[:1]]
    return blocks


def _explain(a: Party, b: Party, done: Comparison, first: Place, ask: Question) -> Comparison:
    """A cell differs: find the side that float64 finds wrong, else what the files differ in, else the choice."""
    cell = done.cells[first]
    done = replace(done, first=first, token=cell.token, channel=cell.channel, measured=cell.rel_l2, floor=cell.floor)
    left, right = side_of(a), side_of(b)
    ask.emit(Event("phase", "comparing weights"))
    same_file = left.model.file is right.model.file
    weights = [] if same_file else weight_diffs(left.model.file, right.model.file, ask.cancelled)
    ask.emit(Event("phase", "checking both sides against float64"))
    errors = {name: _replay(party, _ids(done), ask) for name, party in (("A", a), ("B", b))}
    wrong = {n: (place, found[place]) for n, found in errors.items()
             if (place := Check(done.a, found).first) is not None}
    if wrong:
        lent = [n for n, party in (("A", a), ("B", b)) if n in wrong and isinstance(party, Capture) and party.borrowed]
        return _lent_weights(done, wrong, lent[0]) if lent else proven_bug(done, wrong)
    blamed = blame_file(done, key_diffs(left.model.arch, right.model.arch), weights)
    return blamed if blamed is not None else _choice(a, b, done, weights, errors, ask)


def _replay(party: Party, ids: list[int], ask: Question) -> Errors:
    values = party.values if isinstance(party, Capture) else None
    return replay(side_of(party), ids, watch=no_tap, values=values, cancelled=ask.cancelled)[0]


def _lent_weights(done: Comparison, wrong: Mapping[str, tuple[Place, LocalError]], name: str) -> Comparison:
    place, error = wrong[name]
    return replace(done, verdict="INCONCLUSIVE", reasons=(
        f"{place_text(place)} of {name} is not what the other side's weights make of its own inputs "
        f"(NMSE {error.nmse:.2g}); the weights of {name} itself are not read here",
        f"convert the folder of {name} to GGUF and compare that file"))


def _choice(
    a: Party, b: Party, done: Comparison, weights: list[WeightDiff], errors: Mapping[str, Errors], ask: Question
) -> Comparison:
    """H3 where a declared choice gives the capture's values, or every stage of every capture is right by itself."""
    said = _declared(done.a, done.b)
    captures = {n: p for n, p in (("A", a), ("B", b)) if isinstance(p, Capture)}
    right = tuple(_right(n, p, errors[n]) for n, p in captures.items())
    named = (name_weights(weights),) if weights else ()
    crushed = crush(done.a, done.b) if any(side_of(p).compute == "q8" for p in (a, b)) else None
    more = (*named, *((crushed,) if crushed else ()))
    runs = {n: _reproduce(p, done, ask) for n, p in captures.items()}
    again = tuple(_again(n, run, done) for n, run in runs.items())
    whole = all(is_whole(p.values, p.side.model.arch.n_layer) for p in captures.values())
    declared = "declared: " + "; ".join(said or ["other types of weight"])
    if not said and not weights:
        return replace(done, verdict="H2", reasons=("everything declared is alike, yet the values differ", *right))
    if whole or all(run.left is None for run in runs.values()):
        return replace(done, verdict="H3", reasons=(declared, *again, *right, *more))
    return replace(done, verdict="INCONCLUSIVE", reasons=(
        declared, *again, *right, "a capture lacks stages, so that a bug may hide in what is not shown"))


def _declared(a: Trace, b: Trace) -> list[str]:
    """The facts that two traces do not share, among those that change values."""
    pairs = [(name, getattr(a.facts, name), getattr(b.facts, name)) for name in CHOICES]
    return [f"{name} {x} in A, {y} in B" for name, x, y in pairs if x != y]


def _reproduce(capture: Capture, done: Comparison, ask: Question) -> _Reproduced:
    """Run our forward at the capture's declared compute beside its values."""
    side = capture.side
    ask.emit(Event("phase", f"running its file at its declared compute ({side.compute})"))
    pair = run_beside(side, None, capture.values, _ids(done), scope=ask.scope, seed=SEED, unit=unit_of(side),
                      witness=False, emit=lambda event: None, cancelled=ask.cancelled)
    left = min((p for p, c in pair.cells.items() if c.state == "differs"), key=place_order, default=None)
    at_first = pair.cells[done.first].rel_l2 if done.first in pair.cells else None
    return _Reproduced(side.compute, at_first, left, multiple_of(pair.cells[left]) if left else 0.0)


def _again(name: str, run: _Reproduced, done: Comparison) -> str:
    assert done.first is not None
    near = "" if run.at_first is None else (
        f"; at {place_text(done.first)} it is {run.at_first:.2g} away, A and B are {done.measured or 0:.2g} apart")
    if run.left is None:
        return f"our forward at compute {run.compute} gives the values of {name} within the floor{near}"
    return (f"our forward at compute {run.compute} leaves {place_text(run.left)} of {name} {run.multiple:.0f} x its "
            f"floor away: rounding in another order, grown through the layers{near}")


def _right(name: str, capture: Capture, errors: Errors) -> str:
    far = max((e.declared for e in errors.values() if e.declared is not None), default=0.0)
    return (f"each of {len(errors)} stages of {name} is what float64 makes of its own inputs, within its compute; and "
            f"what compute {capture.side.compute} makes of them, to {far:.1e}")
