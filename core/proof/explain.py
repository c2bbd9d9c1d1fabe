"""Say why a cell differs: the side that float64 finds wrong, else what the files differ in, else a declared choice.

Which choices there are, and how one is tried, is told by judge_pair.py of live sides and by judge_capture.py of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from core.model.stages import Place, place_order, place_text
from core.proof.capture import ExternalRun
from core.proof.check import check_stages
from core.proof.check_result import Check
from core.proof.measure_pair import CompareOptions, compute_alike
from core.proof.verdict import OTHER_WEIGHTS, Comparison, Doubt, Evidence, Verdict
from core.proof.weights.file_diff import FileDiff, list_weights
from core.proof.weights.weight_diff import WeightDiff
from core.system.progress import Phase, Reached
from core.trace.measures import MIN_REL_L2_FLOOR, PROOF_MULTIPLE, Difference, LocalError, SideName, State
from core.trace.run import Side

EACH_RIGHT = "each side is right by its own weights in float64, so that neither is named as the wrong one"

Party: TypeAlias = Side | ExternalRun
Errors: TypeAlias = Mapping[Place, LocalError]
Choose: TypeAlias = Callable[[Mapping[SideName, Errors]], Comparison]


def explain(a: Party, b: Party, found: Evidence, files: FileDiff, ask: CompareOptions, choose: Choose) -> Comparison:
    """Conclude from the place where the sides part: a bug that float64 proves, a difference of the files, or a choice.

    choose: concludes where all weights are alike or differ by their rounding.
    """
    last = _last_layer(a, b, found, files)
    errors = {name: _against_float64(name, party, found, last, ask)
              for name, party in zip(SideName, (a, b), strict=True)}
    wrong = {name: (place, errors[name][place]) for name, trace in zip(SideName, (found.a, found.b), strict=True)
             if (place := Check(trace, errors[name]).first) is not None}
    for name, party in zip(SideName, (a, b), strict=True):
        if name in wrong and isinstance(party, ExternalRun) and party.borrowed:
            return _lent_weights_differ(found, name, *wrong[name])
    if wrong:
        return _prove_bug(found, wrong)
    blamed = _file_difference(found, files)
    return blamed if blamed is not None else choose(errors)


def _against_float64(name: SideName, party: Party, found: Evidence, last: int | None, ask: CompareOptions) -> Errors:
    """The local errors of one side, and word of each layer that is judged."""
    def tell(place: Place, error: LocalError) -> None:
        if place[0] is not None and place[1] == "output":
            ask.emit(Reached(place[0]))

    step = list(SideName).index(name) + 1
    ask.emit(Phase(f"checking {name} against float64", step, len(SideName)))
    return check_stages(side_of(party), found.token_ids, values=_values_of(party), last_layer=last, on_error=tell,
                        cancelled=ask.cancelled)


def side_of(party: Party) -> Side:
    """The live side, or the model and declared compute behind a capture."""
    return party.side if isinstance(party, ExternalRun) else party


def name_weights(files: FileDiff) -> str:
    """Name the first few weights that differ by their rounding or type, and count the rest."""
    return list_weights(files.chosen)


def unexplained_by(files: FileDiff, cells: Mapping[Place, Difference]) -> Place | None:
    """The first place with a local error though no weight that it reads differs; None where there is none."""
    own = [p for p, cell in cells.items() if differs_by_itself(cell) and not files.reads_changed(p)]
    return min(own, key=place_order, default=None)


def differs_by_itself(cell: Difference) -> bool:
    """Say whether B's operation on A's inputs is not A's value."""
    return cell.local is not None and cell.local > PROOF_MULTIPLE * MIN_REL_L2_FLOOR


def _values_of(party: Party) -> Mapping[Place, object] | None:
    return party.values if isinstance(party, ExternalRun) else None


def _last_layer(a: Party, b: Party, found: Evidence, files: FileDiff) -> int | None:
    """How far to check, None for all: without a choice nothing behind the first difference can be its cause."""
    assert found.first is not None
    if not isinstance(a, Side) or not isinstance(b, Side) or not compute_alike(a, b):
        return None
    if files.chosen:
        return None
    return 0 if found.first == (None, "embedding") else found.first[0]


def _lent_weights_differ(found: Evidence, name: SideName, place: Place, error: LocalError) -> Comparison:
    return found.conclude(
        Verdict.INCONCLUSIVE,
        f"{place_text(place)} of {name} is not what the other side's weights make of its own inputs "
        f"(NMSE {error.nmse:.2g}); the weights of {name} itself are not read here",
        f"convert the folder of {name} to GGUF and compare that file", why=Doubt.BORROWED)


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


def _file_difference(found: Evidence, files: FileDiff) -> Comparison | None:
    """H2 (or INCONCLUSIVE) where a key or a weight differs by more than rounding; None where none does."""
    changed = files.changed
    known = [w for w in changed if not w.is_unmeasured]
    if not files.keys and not changed:
        return None
    blamed = known if known or files.keys else changed
    found = replace(found, first=_first_read(found, files, blamed))
    named = (list_weights(blamed),) if blamed else ()
    if blamed is changed and not known:
        return found.conclude(Verdict.INCONCLUSIVE, *named, "a type among them has no measured row",
                              why=Doubt.UNKNOWN_TYPE)
    return found.conclude(Verdict.H2, *(f"hyper-parameter {k.sentence}" for k in files.keys), *named, EACH_RIGHT,
                          why=OTHER_WEIGHTS if files.is_other_model else None)


def _first_read(found: Evidence, files: FileDiff, weights: Sequence[WeightDiff]) -> Place | None:
    """Where the named keys and weights are read first; where the sides part by themselves before that, there."""
    assert found.first is not None
    read = files.first_place(found.cells, weights)
    parted_alike = found.alike and differs_by_itself(found.cells[found.first])
    if read is None or (parted_alike and place_order(found.first) < place_order(read)):
        return found.first
    return read
