"""Records of a comparison of two traces and its verdict. The rules that reach it: judge_pair.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.stages import Place, place_order, place_text, stage_named
from core.proof.weights.fault import Overflow, WeightScan
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
    Verdict.INCONCLUSIVE: "neither a bug nor a choice is proved",
    Verdict.NOT_COMPARABLE: "the numbers were not taken alike",
}
OTHER_WEIGHTS = "other weights: another model"  # said of an H2 of two trainings
EXIT_CODES = {Verdict.AGREE: 0, Verdict.H1: 0, Verdict.H3: 0, Verdict.H2: 1, Verdict.NOT_COMPARABLE: 4,
              Verdict.INCONCLUSIVE: 5}
# of several prompts the worst counts
SEVERITY = (Verdict.AGREE, Verdict.H1, Verdict.H3, Verdict.INCONCLUSIVE, Verdict.NOT_COMPARABLE, Verdict.H2)

JUDGED = "the engine computes what this file says; whether the file is right is not judged: compare, or audit"
RECOVERED = 0.9  # of the KL divergence: what a graft must bring back to hold the cause


class Doubt(StrEnum):
    """Why a comparison is INCONCLUSIVE, in the words that stand beside the verdict."""

    NEAR = "the difference is near the noise floor"
    UNREACHED = "the files differ where this prompt does not look"
    UNKNOWN_TYPE = "what a weight's type costs is not known"
    STATISTICS = "one side has statistics only"
    UNDECLARED = "what the sides do not share, or do not say, may explain it"
    INCOMPLETE = "a side does not show every value"
    BORROWED = "the weights of one side are not read here"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on B against A. first: None where no cell differs; side: None where it is not decided.

    why: what is said in place of the verdict's own words.
    """

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
    why: str | None = None

    @property
    def multiple(self) -> float | None:
        """How many floors the first difference is."""
        return self.measured / self.floor if self.measured is not None and self.floor else None

    @property
    def meaning(self) -> str:
        """What the verdict says, in a few words."""
        return self.why or VERDICTS[self.verdict]

    @property
    def names(self) -> tuple[str, str]:
        """What A and B are called: each by its file; two of one name by what else they do not share, where they do."""
        if self.a.name != self.b.name:
            return self.a.name, self.b.name
        unlike = [(x, y) for x, y in zip(_settings(self.a), _settings(self.b), strict=True) if x != y]
        left, right = (" ".join(pair[i] for pair in unlike) for i in (0, 1))
        return (left, right) if unlike else (self.a.name, self.b.name)


def _settings(trace: Trace) -> tuple[str, ...]:
    """What a trace was taken with that people set, as words."""
    facts = trace.facts
    return (facts.engine or "unknown engine", facts.compute or "unknown compute", facts.device or "unknown device",
            f"threads {facts.threads or 'unknown'}", f"planted {trace.planted}" if trace.planted else "not planted")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two traces and what was measured of B against A: what a verdict is concluded from. first: where they part.

    alike: both sides compute alike, so that the cells are judged by their local error.
    """

    a: Trace
    b: Trace
    scope: str
    cells: Mapping[Place, Difference] = field(default_factory=dict, repr=False)
    first: Place | None = None
    alike: bool = False

    @property
    def token_ids(self) -> list[int]:
        """The tokens that both sides were fed."""
        return [t.id for t in self.a.tokens]

    def places(self, state: State) -> list[Place]:
        """The places whose cell is in that state, in order of computation."""
        return sorted((p for p, cell in self.cells.items() if cell.state is state), key=place_order)

    def conclude(self, verdict: Verdict, *reasons: str, why: str | None = None) -> Comparison:
        """The verdict, with the numbers of the cell where the sides part; why: in place of the verdict's own words."""
        cell = self.cells.get(self.first) if self.first is not None else None  # absent where the scope leaves it out
        found = Comparison(verdict, reasons, self.a, self.b, self.scope, self.first, cells=self.cells, why=why)
        if cell is None:
            return found
        return replace(found, token=cell.token, channel=cell.channel, measured=cell.rel_l2, floor=cell.floor)


@dataclass(frozen=True, slots=True)
class Check:
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
                    f"within its compute's floor{times}", *(() if doubt else (JUDGED,)),
                    *((cache,) if self.decoded else ()), *self._scanned)
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
        inputs = " and ".join(stage_named(place[1]).inputs) or "token ids"
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
        return (f"{stages} could not be judged{from_here}: no token of their inputs is finite",) if left else ()

    @property
    def _scanned(self) -> tuple[str, ...]:
        return (self.scan.decoded_text,) if self.scan.decoded_text else ()


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
        cell = c.cells.get(c.first)  # absent where the scope leaves it out
        side = f"{c.side} is wrong at" if c.side else "the sides part at"
        where = f", token {c.token}, channel {c.channel}" if c.token is not None else ""
        parts = [f"{side} {place_text(c.first)}{where}"]
        if cell and cell.local is not None and cell.inherited is not None:
            parts.append(f"local error {cell.local:.2g}, inherited {cell.inherited:.2g}")
        best = self.ladder.best() if self.ladder else None
        if self.ladder and best:
            parts.append(f"putting B's {place_text(best.place)} into A brings back {best.recovered:.0%} of the "
                         f"logits' KL divergence of {self.ladder.kl:.2g} nats")
        return "; ".join(parts)
