"""The record of a check against float64, and what may be said of it. The checking: check.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.model.stages import Place, place_order, place_text, stage_named
from core.notebook.result import ROWS, Notebook
from core.proof.verdict import EXIT_CODES, Verdict
from core.proof.weights.fault import Overflow, WeightScan
from core.system.outcome import Outcome
from core.trace.measures import BAD_FACTOR, Difference, LocalError, State

if TYPE_CHECKING:
    from core.trace.record import Trace


JUDGED = "the engine computes what this file says; whether the file is right is not judged: compare, or audit"


@dataclass(frozen=True, slots=True, repr=False)
class Check(Notebook):
    """The verdict of a source against float64: PASS where nothing is bad, else FAIL at the first bad place.

    decoded: generated positions through the KV cache (B) against one prefill (A); empty where none was asked for.
    unmeasured: stages that could not be judged, in order; None: nobody looked, so that nothing fails for it.
    scan: of the weights by themselves.
    doubt: why neither PASS nor FAIL can be said.
    """

    trace: Trace
    errors: Mapping[Place, LocalError] = field(repr=False)
    decoded: Mapping[Place, Difference] = field(default_factory=dict, repr=False)
    unmeasured: tuple[Place, ...] | None = None
    overflow: Overflow | None = None
    scan: WeightScan = field(default_factory=WeightScan)
    doubt: str | None = None

    def sentences(self) -> list[str]:
        """The verdict with its first place, then the reasons."""
        first = f" First: {place_text(self.first)}." if self.first is not None else ""
        return [f"{self.verdict}: {self.trace.name} against float64.{first}", *self.reasons]

    def rows(self) -> list[dict[str, object]]:
        """How far each stage is from float64 on its own inputs, as local.csv has it."""
        found = ((*place, self.errors[place]) for place in sorted(self.errors, key=place_order))
        return [{"layer": layer, "stage": stage, "nmse": e.nmse, "sqnr_db": e.sqnr_db, "floor": e.floor,
                 "token": e.token, "channel": e.channel} for layer, stage, e in found]

    def rows_shown(self) -> list[dict[str, object]]:
        """The stages that are bad; where none is, the first of the table."""
        rows, bad = self.rows(), {p for p, e in self.errors.items() if e.is_bad}
        return ([row for row in rows if (row["layer"], row["stage"]) in bad] or rows)[:ROWS]

    @property
    def lost(self) -> list[Place]:
        """Stages of whose inputs no token is finite, in order of computation."""
        if self.unmeasured is not None:
            return list(self.unmeasured)
        return sorted(self.trace.cells.keys() - self.errors.keys(), key=place_order)

    @property
    def bad(self) -> list[Place]:
        """Every bad place in order of computation: stages, weights, an overflow; what is lost only without a cause."""
        found = {p for p, e in self.errors.items() if e.is_bad} | {f.place for f in self.scan.faults}
        found |= {self.overflow.place} if self.overflow else set()
        return sorted(found or (self.unmeasured or ())[:1], key=place_order)

    @property
    def first(self) -> Place | None:
        """The first bad place, float64's before the cache's; None where there is none."""
        cache = [p for p, d in self.decoded.items() if d.state is State.DIFFERS]
        return next(iter(self.bad), None) or min(cache, key=place_order, default=None)

    @property
    def spot(self) -> tuple[int | None, int | None]:
        """Token and channel of the first bad place; None where every token, or every channel, has it."""
        worst = self.worst
        if worst is not None and self.first is not None:
            return worst.token, worst.channel
        if self.overflow is not None and self.overflow.place == self.first:
            return self.overflow.token, self.overflow.channel
        return None, next((f.channel for f in self.scan.faults if f.place == self.first), None)

    @property
    def worst(self) -> LocalError | Difference | None:
        """What was measured at the first bad place, None where it is a weight or an overflow.

        Where the check passed: at the stage nearest to its limit.
        """
        if self.first is not None:
            error = self.errors.get(self.first)
            return error if error and error.is_bad else None if self.bad else self.decoded[self.first]
        return max(self.errors.values(), key=lambda e: e.nmse / e.limit, default=None)

    @property
    def verdict(self) -> Outcome | Verdict:
        """PASS or FAIL; INCONCLUSIVE where there is a doubt."""
        if self.doubt is not None:
            return Verdict.INCONCLUSIVE
        return Outcome.PASS if self.first is None else Outcome.FAIL

    @property
    def exit_code(self) -> int:
        """0, 1, or 5 where there is a doubt."""
        return EXIT_CODES[Verdict.INCONCLUSIVE] if self.doubt is not None else int(self.first is not None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was found, in a sentence each."""
        worst, doubt = self.worst, (self.doubt,) if self.doubt else ()
        if self.first is None:
            times = f"; the worst is {worst.nmse / worst.limit:.2g} x it" if isinstance(worst, LocalError) else ""
            cache = "generated positions through the cache equal one prefill within the floor"
            return (*doubt,
                    f"each of {len(self.errors)} stages is what float64 makes of its own inputs, "
                    f"within {BAD_FACTOR:g} x its compute's floor{times}", *(() if doubt else (JUDGED,)),
                    *((cache,) if self.decoded else ()), *self.ties, *self._scanned)
        if isinstance(worst, Difference):
            return (*doubt, f"{place_text(self.first)} of generated token {worst.token} differs through the KV cache "
                    f"from one prefill: relative L2 {worst.rel_l2:.2g}, floor {worst.floor:.2g}, "
                    f"channel {worst.channel}",)
        later = len(self.bad) - 1
        more = "1 more stage is bad by itself" if later == 1 else f"{later} more stages are bad by themselves"
        return (*doubt, *self.reasons_at(self.first), *((more,) if later else ()), *self.unjudged)

    def reasons_at(self, place: Place) -> tuple[str, ...]:
        """What was found at one bad place, a sentence each: its weights, an overflow, how far it is from float64."""
        by_itself = [f.sentence for f in self.scan.faults if f.place == place]
        by_itself += [self.overflow.sentence] if self.overflow and self.overflow.place == place else []
        error = self.errors.get(place)
        if error is None or not error.is_bad:
            return tuple(by_itself)
        inputs = " and ".join(error.inputs or stage_named(place[1]).inputs) or "token ids"
        return (*by_itself, f"{place_text(place)} is not what float64 makes of its own inputs ({inputs}): "
                f"NMSE {error.nmse:.2g}, floor {error.limit:.2g}, token {error.token}, channel {error.channel}",
                *((error.span_text,) if error.span else ()),
                *((f"looks like this: {error.guess}",) if error.guess else ()))

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Say how many stages have no finite inputs, so that nothing can be said of them."""
        left = len(self.lost)
        stages = "1 stage" if left == 1 else f"{left} stages"
        from_here = f", from {place_text(self.lost[0])} on" if left else ""
        return (f"{stages} could not be judged{from_here}: no token has finite inputs and results",) if left else ()

    @property
    def ties(self) -> tuple[str, ...]:
        """Say which experts were taken for others of the same score."""
        found = {p: e.ties for p, e in self.errors.items() if e.ties}
        told = "; ".join(f"{place_text(p)} {ties[0]}" for p, ties in list(found.items())[:3])
        n = sum(map(len, found.values()))
        return (f"{n} near {'tie' if n == 1 else 'ties'} of a router, judged as a set: {told}",) if n else ()

    @property
    def _scanned(self) -> tuple[str, ...]:
        return tuple(text for text in (self.scan.decoded_text, self.scan.lone) if text)
