"""Records of a comparison of two traces and its verdict. The rules that reach it: judge_pair.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.stages import Place, place_order, place_text, stage_named
from core.system.outcome import Outcome
from core.trace.measures import Difference, LocalError, SideName, State

if TYPE_CHECKING:
    from core.trace.record import Trace

class Verdict(StrEnum):
    """What is said of B against A."""

    AGREE = "AGREE"
    H1 = "H1"
    H2 = "H2"
    H3 = "H3"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_COMPARABLE = "NOT_COMPARABLE"


VERDICTS = {
    Verdict.AGREE: "no cell differs, and no hint names a spike",
    Verdict.H1: "no cell differs, and both sides show the same spike: it is the model",
    Verdict.H2: "a cell differs and no declared choice explains it: a bug",
    Verdict.H3: "a cell differs, and a declared numeric choice explains it",
    Verdict.INCONCLUSIVE: "the difference is near the noise floor, or one side has statistics only",
    Verdict.NOT_COMPARABLE: "the numbers were not taken alike",
}
EXIT_CODES = {Verdict.AGREE: 0, Verdict.H1: 0, Verdict.H3: 0, Verdict.H2: 1, Verdict.NOT_COMPARABLE: 4,
              Verdict.INCONCLUSIVE: 5}
# of several prompts the worst counts
SEVERITY = (Verdict.AGREE, Verdict.H1, Verdict.H3, Verdict.INCONCLUSIVE, Verdict.NOT_COMPARABLE, Verdict.H2)

RECOVERED = 0.9  # of the KL divergence: what a graft must bring back to hold the cause


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on B against A. first: None where no cell differs; side: None where it is not decided."""

    verdict: Verdict
    reasons: tuple[str, ...]
    a: Trace
    b: Trace
    scope: str
    first: Place | None = None
    token: int | None = None
    channel: int | None = None
    side: SideName | None = None
    measured: float | None = None  # relative L2
    floor: float | None = None     # relative L2
    error: LocalError | None = None  # of the wrong side at first
    cells: Mapping[Place, Difference] = field(default_factory=dict, repr=False)

    @property
    def multiple(self) -> float | None:
        """How many floors the first difference is."""
        return self.measured / self.floor if self.measured is not None and self.floor else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two traces and what was measured of B against A: what a verdict is concluded from. first: where they part."""

    a: Trace
    b: Trace
    scope: str
    cells: Mapping[Place, Difference] = field(default_factory=dict, repr=False)
    first: Place | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens that both sides were fed."""
        return [t.id for t in self.a.tokens]

    def places(self, state: State) -> list[Place]:
        """The places whose cell is in that state, in order of computation."""
        return sorted((p for p, cell in self.cells.items() if cell.state is state), key=place_order)

    def conclude(self, verdict: Verdict, *reasons: str) -> Comparison:
        """The verdict, with the numbers of the cell where the sides part."""
        cell = self.cells[self.first] if self.first is not None else None
        if cell is None:
            return Comparison(verdict, reasons, self.a, self.b, self.scope, cells=self.cells)
        return Comparison(
            verdict, reasons, self.a, self.b, self.scope, self.first, cell.token, cell.channel, measured=cell.rel_l2,
            floor=cell.floor, cells=self.cells)


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict of a source against float64: PASS where no stage is bad, else FAIL at the first bad one.

    decoded: generated positions through the KV cache (B) against one prefill (A); empty where none was asked for.
    """

    trace: Trace
    errors: Mapping[Place, LocalError] = field(repr=False)
    decoded: Mapping[Place, Difference] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> Place | None:
        """The first bad place in order of computation, float64's before the cache's; None where the check passed."""
        bad = [p for p, e in self.errors.items() if e.is_bad]
        bad = bad or [p for p, d in self.decoded.items() if d.state is State.DIFFERS]
        return min(bad, key=place_order, default=None)

    @property
    def worst(self) -> LocalError | Difference | None:
        """What was measured at the first bad place; where the check passed, at the stage nearest to its limit."""
        if self.first is not None:
            error = self.errors.get(self.first)
            return error if error and error.is_bad else self.decoded[self.first]
        return max(self.errors.values(), key=lambda e: e.nmse / e.limit, default=None)

    @property
    def verdict(self) -> Outcome:
        """PASS or FAIL."""
        return Outcome.PASS if self.first is None else Outcome.FAIL

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was found, in a sentence each."""
        worst = self.worst
        if self.first is None:
            times = f"; the worst is {worst.nmse / worst.limit:.2g} x it" if isinstance(worst, LocalError) else ""
            cache = "generated positions through the cache equal one prefill within the floor"
            return (f"each of {len(self.errors)} stages is what float64 makes of its own inputs, "
                    f"within its compute's floor{times}", *((cache,) if self.decoded else ()), *self.unjudged)
        if isinstance(worst, Difference):
            return (f"{place_text(self.first)} of generated token {worst.token} differs through the KV cache "
                    f"from one prefill: relative L2 {worst.rel_l2:.2g}, floor {worst.floor:.2g}, "
                    f"channel {worst.channel}",)
        later = sum(e.is_bad for e in self.errors.values()) - 1
        more = "1 more stage is bad by itself" if later == 1 else f"{later} more stages are bad by themselves"
        return (*self.reasons_at(self.first), *((more,) if later else ()), *self.unjudged)

    def reasons_at(self, place: Place) -> tuple[str, ...]:
        """What was found at one judged place: how far it is from float64, its span and its guess, a sentence each."""
        error = self.errors[place]
        inputs = " and ".join(stage_named(place[1]).inputs) or "token ids"
        return (f"{place_text(place)} is not what float64 makes of its own inputs ({inputs}): "
                f"NMSE {error.nmse:.2g}, floor {error.limit:.2g}, token {error.token}, channel {error.channel}",
                *((error.span_text,) if error.span else ()),
                *((f"looks like this: {error.guess}",) if error.guess else ()))

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Say how many stages have no finite inputs, so that nothing can be said of them."""
        left = len(self.trace.cells.keys() - self.errors.keys())
        stages = "1 stage" if left == 1 else f"{left} stages"
        return (f"{stages} could not be judged: no token of their inputs is finite",) if left else ()


@dataclass(frozen=True, slots=True)
class Rung:
    """A graft of B's value at a place into A.

    kl: KL(B || A grafted) of the last token, in nats. recovered: 1 - kl / kl of A.
    """

    place: Place
    kl: float
    recovered: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs that were tried, in order. kl: KL(B || A) without a graft. entry: the layer where the cause lies."""

    kl: float
    rungs: tuple[Rung, ...]
    entry: int | None  # None: before the layers or after them, or nothing recovers

    def best(self) -> Rung | None:
        """The rung of one stage that recovers most, the first in order of computation on a tie."""
        inside = [r for r in self.rungs if r.place[0] == self.entry]
        return min(inside, key=lambda r: (-round(r.recovered, 3), place_order(r.place)), default=None)


@dataclass(frozen=True, slots=True)
class Bisection:
    """A comparison with its cause proved: the ladder of grafts (None where nothing differs), and the reproducer."""

    comparison: Comparison
    ladder: Ladder | None = None
    write_reproducer: Callable[[Path], Path] | None = None  # None where no side is wrong by its own weights

    @property
    def sentence(self) -> str:
        """The whole finding in one sentence."""
        c = self.comparison
        if c.first is None:
            return f"{c.verdict}: {c.reasons[0]}"
        cell = c.cells[c.first]
        side = f"{c.side} is wrong at" if c.side else "the sides part at"
        parts = [f"{side} {place_text(c.first)}, token {c.token}, channel {c.channel}"]
        if cell.local is not None and cell.inherited is not None:
            parts.append(f"local error {cell.local:.2g}, inherited {cell.inherited:.2g}")
        best = self.ladder.best() if self.ladder else None
        if self.ladder and best:
            parts.append(f"putting B's {place_text(best.place)} into A brings back {best.recovered:.0%} of the "
                         f"logits' KL divergence of {self.ladder.kl:.2g} nats")
        return "; ".join(parts)
