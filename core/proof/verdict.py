"""Records of a comparison of two traces, its verdict and its cause. The rules that reach it: judge_pair.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from core.model.stages import Place, place_order, place_text
from core.notebook.result import ROWS, Notebook
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


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Notebook):
    """The verdict on B against A. first: None where no cell differs; side: None where it is not decided.

    why: what is said in place of the verdict's own words. files: what the two files differ in, from their bytes.
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
    files: tuple[str, ...] = ()

    @property
    def multiple(self) -> float | None:
        """How many floors the first difference is."""
        return self.measured / self.floor if self.measured is not None and self.floor else None

    @property
    def broken(self) -> str | None:
        """Which side has NaN or Inf where they part, as no distance can say; None where the distance is finite."""
        if self.measured is None or math.isfinite(self.measured) or self.first is None:
            return None
        cells = {name: trace.cells.get(self.first) for name, trace in (("A", self.a), ("B", self.b))}
        stats = {name: cell.at(self.scope) for name, cell in cells.items() if cell is not None}
        sides = [name for name, s in stats.items() if s is not None and (s.nan or s.inf)]
        return f"NaN or Inf in {sides[0]} only" if len(sides) == 1 else "NaN or Inf in A and B, not at the same values"

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

    def sentences(self) -> list[str]:
        """The verdict with its first cell, then the reasons."""
        side = f", side {self.side} is wrong" if self.side else ""
        first = f" First: {place_text(self.first)}{side}." if self.first is not None else ""
        return [f"{self.verdict}: {self.meaning}.{first}", *self.reasons]

    def rows(self) -> list[dict[str, object]]:
        """B against A at every place, as cells.csv has it."""
        return [{"layer": layer, "stage": stage, **asdict(self.cells[layer, stage])}
                for layer, stage in sorted(self.cells, key=place_order)]

    def rows_shown(self) -> list[dict[str, object]]:
        """The cells that differ, the first of all; without one, the first of the table."""
        rows = self.rows()
        return ([row for row in rows if row["state"] == State.DIFFERS] or rows)[:ROWS]


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
class PatchResult:
    """A graft of B's value at a place into A.

    kl: KL(B || A grafted) of the last token, in nats. recovered: 1 - kl / kl of A.
    """

    place: Place
    kl: float
    recovered: float


@dataclass(frozen=True, slots=True)
class LayerBisection:
    """The rungs that were tried, in order. kl: KL(B || A) without a graft. entry: the layer where the cause lies."""

    kl: float
    rungs: tuple[PatchResult, ...]
    entry: int | None  # None: before the layers or after them, or nothing recovers

    def best(self) -> PatchResult | None:
        """The rung of one stage that recovers most, the first in order of computation on a tie."""
        inside = [r for r in self.rungs if r.place[0] == self.entry]
        return min(inside, key=lambda r: (-round(r.recovered, 3), place_order(r.place)), default=None)


@dataclass(frozen=True, slots=True, repr=False)
class Bisection(Notebook):
    """A comparison with its cause proved: the ladder of grafts (None where nothing differs), and the reproducer."""

    comparison: Comparison
    ladder: LayerBisection | None = None
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

    def sentences(self) -> list[str]:
        """The verdict, then the proof."""
        return [self.comparison.sentences()[0], self.sentence, *self.comparison.reasons]

    def rows(self) -> list[dict[str, object]]:
        """The ladder: what a graft at each place brings back."""
        rungs = self.ladder.rungs if self.ladder else ()
        return [{"graft": place_text(r.place), "kl": r.kl, "recovered": r.recovered} for r in rungs]
