"""Say why a cell differs: the side that float64 finds wrong, else what the files differ in, else a declared choice.

Which choices there are, and how one is tried, is told by judge_pair.py of live sides and by judge_capture.py of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from core.model.stages import Place, place_order, place_text
from core.proof.capture import Capture
from core.proof.check import check_stages
from core.proof.measure_pair import Question
from core.proof.verdict import Check, Comparison, Evidence, Verdict
from core.proof.weight_diff import WeightDiff, key_diffs, weight_diffs
from core.system.progress import Phase
from core.trace.measures import LocalError, SideName, State
from core.trace.run import Side

NAMED_WEIGHTS = 3  # in a reason; the rest are counted
EACH_RIGHT = "each side is right by its own weights in float64, so that neither is named as the wrong one"

Party: TypeAlias = Side | Capture
Errors: TypeAlias = Mapping[Place, LocalError]
Choose: TypeAlias = Callable[[Sequence[WeightDiff], Mapping[SideName, Errors]], Comparison]


def explain(a: Party, b: Party, found: Evidence, ask: Question, choose: Choose) -> Comparison:
    """Conclude from the place where the sides part: a bug that float64 proves, a difference of the files, or a choice.

    choose: concludes where all weights are alike or differ by their rounding; it is given those that differ.
    """
    left, right = side_of(a), side_of(b)
    ask.emit(Phase("comparing weights"))
    same_file = left.model.file is right.model.file
    weights = [] if same_file else weight_diffs(left.model.file, right.model.file, ask.cancelled)
    ask.emit(Phase("checking both sides against float64"))
    last = _last_layer(a, b, found, weights)
    errors = {name: check_stages(side_of(party), found.token_ids, values=_values_of(party), last_layer=last,
                                 cancelled=ask.cancelled)
              for name, party in zip(SideName, (a, b), strict=True)}
    wrong = {name: (place, errors[name][place]) for name, trace in zip(SideName, (found.a, found.b), strict=True)
             if (place := Check(trace, errors[name]).first) is not None}
    for name, party in zip(SideName, (a, b), strict=True):
        if name in wrong and isinstance(party, Capture) and party.borrowed:
            return _blame_lender(found, name, *wrong[name])
    if wrong:
        return _prove_bug(found, wrong)
    blamed = _blame_file(found, key_diffs(left.model.arch, right.model.arch), weights)
    return blamed if blamed is not None else choose(weights, errors)


def side_of(party: Party) -> Side:
    """The live side, or the model and declared compute behind a capture."""
    return party.side if isinstance(party, Capture) else party


def runs_otherwise(a: Side, b: Side) -> bool:
    """Say whether two sides declare another compute or another device."""
    return (a.compute, a.model.device) != (b.compute, b.model.device)


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


def _values_of(party: Party) -> Mapping[Place, object] | None:
    return party.values if isinstance(party, Capture) else None


def _last_layer(a: Party, b: Party, found: Evidence, weights: Sequence[WeightDiff]) -> int | None:
    """How far to check, None for all: without a choice nothing behind the first difference can be its cause."""
    assert found.first is not None
    if not isinstance(a, Side) or not isinstance(b, Side) or runs_otherwise(a, b):
        return None
    if any(w.is_explained for w in weights):
        return None
    return 0 if found.first == (None, "embedding") else found.first[0]


def _blame_lender(found: Evidence, name: SideName, place: Place, error: LocalError) -> Comparison:
    return found.conclude(
        Verdict.INCONCLUSIVE,
        f"{place_text(place)} of {name} is not what the other side's weights make of its own inputs "
        f"(NMSE {error.nmse:.2g}); the weights of {name} itself are not read here",
        f"convert the folder of {name} to GGUF and compare that file")


def _prove_bug(found: Evidence, wrong: Mapping[SideName, tuple[Place, LocalError]]) -> Comparison:
    """H2 with a proof: the first place that float64 finds wrong, and the side (None where both are wrong there)."""
    side, (place, error) = min(wrong.items(), key=lambda item: place_order(item[1][0]))
    cell = found.cells.get(place)  # absent where the scope does not cover it, as logits at scope first
    reason = (f"{place_text(place)} of {side} is not what float64 makes of its own inputs and weights: "
              f"NMSE {error.nmse:.2g}, floor {error.limit:.2g}; token {error.token}, channel {error.channel}")
    later = [p for p in found.places(State.DIFFERS) if place_order(p) > place_order(place)]
    both = len(wrong) > 1 and len({p for p, _ in wrong.values()}) == 1
    return Comparison(
        Verdict.H2, (reason, *((error.span_text,) if error.span else ()),
                     *((f"looks like this: {error.guess}",) if error.guess else ()),
                     *((f"{len(later)} later cells differ: downstream",) if later else ())),
        found.a, found.b, found.scope, place, error.token, error.channel, None if both else side,
        cell.rel_l2 if cell else None, cell.floor if cell else None, error, found.cells)


def _blame_file(found: Evidence, keys: Sequence[str], weights: Sequence[WeightDiff]) -> Comparison | None:
    """H2 (or INCONCLUSIVE) where a hyper-parameter or a weight differs by more than rounding; None where none does."""
    if keys:
        return found.conclude(Verdict.H2, *(f"hyper-parameter {k}" for k in keys), EACH_RIGHT)
    changed = [w for w in weights if not w.is_explained]
    if not changed:
        return None
    known = [w for w in changed if not w.is_unmeasured]
    if not known:
        return found.conclude(
            Verdict.INCONCLUSIVE, name_weights(changed), "a type among them has no measured row")
    return found.conclude(Verdict.H2, name_weights(known), EACH_RIGHT)
