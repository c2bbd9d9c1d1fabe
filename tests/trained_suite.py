"""Faults, harmless files and clean pairs of a trained model, by surgery of its bytes: what the tool says of each.

usage: python -m tests.trained_suite --model FILE.gguf [--compute f32,q8,bf16] [--only KIND] [--sample N]
                                     [--layers N] [--seed N] [--minutes N] [--out FILE]

Prints a line a case and a table; exit 1 where a bar below is not reached. --sample draws N cases for each compute,
each kind in turn. --minutes begins no case after so many, of each compute. --layers
keeps the model's first layers on both sides: trained weights still, in less time.
Right is: a fault is H2 at the first stage that reads its cause, or a refusal that names it where the file may be
refused, or INCONCLUSIVE naming it where the prompt does not reach it; a harmless file or a clean pair is AGREE, H1
or H3; a check of a fault is FAIL naming it; of a single row of zeros, which may be a pruned neuron, PASS naming it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

from core import session
from core.trace.request import Prompt, Source
from tests.trained.cases import FAULTS, Case, Kind, Place
from tests.trained.keys import CHECKS, KEYS
from tests.trained.surgery import ModelCopy, keep_layers, read_copy
from tests.trained.twins import HARMLESS, UNDERS, clean_pairs

COMPUTES = ("f32", "q8", "bf16")
BARS = {"fault": 0.98, "requantised": 0.98, "requantised low": 0.75, "check": 0.98}  # of each group: the share right
NEVER = {"fault": ("AGREE", "H1", "H3"), "harmless": ("H2",), "clean": ("H2",)}  # verdicts without exception
REACHED = 1e-5  # a cell that differs by more, with local error alone: the prompt reaches the fault (10 x 1e-6)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tool said of a case. verdict: as printed, or exit N, or crash. moved: the largest local difference."""

    verdict: str
    first: Place | None
    reasons: str
    moved: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case, what was seen, and whether place, name and the whole are right."""

    case: Case
    compute: str
    seen: Seen
    place_right: bool
    named: bool
    right: bool

    def __str__(self) -> str:
        """One line: what it was, what was said, what is wrong with it."""
        found = f" at {text_of(self.seen.first)}" if self.seen.first else ""
        wrong = "" if self.right else f"  WRONG, {wanted(self.case)}: {self.seen.reasons[:160]}"
        unnamed = "" if self.named or not self.right or not self.case.names else "  cause not named"
        return (f"{self.compute} {self.case.kind}: {self.case.label}: "
                f"{self.seen.verdict}{found}{unnamed}{wrong}")


def text_of(place: Place | None) -> str:
    """A place as people type it; none where there is none."""
    return "none" if place is None else place[1] if place[0] is None else f"{place[0]}.{place[1]}"


def wanted(case: Case) -> str:
    """What is right for the case, in a few words."""
    if case.alone:
        return says_alone(case) + (f" naming {case.names[0]}" if case.names else "")
    if case.group in ("harmless", "clean"):
        return "AGREE, H1 or H3"
    ways = [f"a refusal naming {case.names[0]}"] if case.refused else []
    ways += [f"H2 at {text_of(case.place)}"] if case.place and case.reached else []
    return " or ".join(ways if case.reached else [f"INCONCLUSIVE naming {case.names[0]}"])


def says_alone(case: Case) -> str:
    """What a check of the file by itself has to say: FAIL where it holds what is always a fault."""
    return "FAIL" if case.names and case.place else "PASS"


def judge(case: Case, compute: str, seen: Seen) -> Outcome:
    """Hold what was said against what is right."""
    named = any(name in seen.reasons for name in case.names)
    place_right = seen.first == case.place if seen.first else False
    if case.alone:
        right = seen.verdict == says_alone(case) and (named or not case.names)
        return Outcome(case, compute, seen, place_right, named, right)
    if case.group in ("harmless", "clean"):
        return Outcome(case, compute, seen, seen.first is None, named, seen.verdict in ("AGREE", "H1", "H3"))
    if seen.verdict == "exit 3":
        place_right = right = case.refused and named
    elif seen.verdict == "H2":
        right = place_right
    else:
        place_right = right = seen.verdict == "INCONCLUSIVE" and named and (
            not case.reached or seen.moved <= REACHED)
    return Outcome(case, compute, seen, place_right, named, right)


class Bench:
    """Runs cases on one model, in a folder of its own; A's files and .apr twins are kept between cases."""

    def __init__(self, model: ModelCopy, folder: Path) -> None:
        self.model, self.folder, self.n = model, folder, 0
        self.clean = model.write(folder / "clean.gguf")
        self.apr: dict[str, Path] = {}

    def run(self, case: Case, compute: str) -> Outcome:
        """Write the files, ask the tool, judge. A crash of the tool is a verdict of its own."""
        started = time.monotonic()
        self.n += 1
        made: list[Path] = []
        try:
            seen = self._ask(case, compute, made)
        except Exception as error:  # noqa: BLE001  an error with a code is the tool's word, any other its crash
            code = getattr(error, "code", None)
            verdict = f"exit {code}" if code is not None else f"crash {type(error).__name__}"
            seen = Seen(verdict, None, str(error))
        for path in made:
            path.unlink(missing_ok=True)
        spent = time.monotonic() - started
        return judge(case, compute, Seen(seen.verdict, seen.first, seen.reasons, seen.moved, spent))

    def _ask(self, case: Case, compute: str, made: list[Path]) -> Seen:
        base, left, right = self.model, self.clean, self.clean
        if case.both:
            base = self.model.copy()
            case.both(base)
            left = right = base.write(self.folder / f"a{self.n}.gguf")
            made.append(left)
        if case.edit:
            changed = base.copy()
            case.edit(changed)
            right = changed.write(self.folder / f"b{self.n}.gguf")
            made.append(right)
        if case.apr:
            right = self._as_apr(case.apr)
        prompt = Prompt(tokens=case.prompt)
        b = source(right, compute, case.b)
        if case.alone:
            check = session.check(b, prompt)
            return Seen(check.verdict, check.first, " ".join(check.reasons))
        result = session.compare(source(left, compute, case.a), b, prompt)
        moved = [d.local if d.local is not None else d.rel_l2 or 0.0 for d in result.cells.values()]
        return Seen(result.verdict, result.first, " ".join(result.reasons), max(moved, default=0.0))

    def _as_apr(self, to: str) -> Path:
        if to not in self.apr:
            self.apr[to] = self.folder / f"clean-{to}.apr"
            session.convert(self.clean, self.apr[to], to=to, force=True)
        return self.apr[to]


def source(path: Path, compute: str, settings: Mapping[str, object]) -> Source:
    """A side: the run's compute unless the case says another."""
    chosen: dict[str, object] = {"compute": compute, **settings}
    return Source(path, device="cpu", compute=str(chosen["compute"]),
                  threads=int(str(chosen["threads"])) if "threads" in chosen else None)


def kinds_of(compute: str) -> dict[str, Kind]:
    """Every kind for one compute."""
    return {**FAULTS, **KEYS, **UNDERS, **HARMLESS, "clean": clean_pairs(compute), **CHECKS}


def cases_of(model: ModelCopy, compute: str, only: str | None, sample: int | None, seed: int) -> list[Case]:
    """The cases of a compute; only: part of a group's or a kind's name. A sample takes each kind's in turn."""
    by_kind: dict[str, list[Case]] = {}
    for kind, make in kinds_of(compute).items():
        for case in make(model, Random(f"{seed} {kind}")):
            if only is None or only.lower() in f"{case.group}: {case.kind}".lower():
                by_kind.setdefault(case.kind, []).append(case)
    if sample is None:
        return [case for cases in by_kind.values() for case in cases]
    rng = Random(seed)
    for cases in by_kind.values():
        rng.shuffle(cases)
    names = rng.sample(list(by_kind), len(by_kind))
    turns = max(map(len, by_kind.values()), default=0)
    drawn = [by_kind[n][turn] for turn in range(turns) for n in names if turn < len(by_kind[n])]
    return drawn[:sample]


def run_suite(
    path: Path, computes: Sequence[str], *, only: str | None = None, sample: int | None = None,
    n_layer: int | None = None, seed: int = 0, minutes: float = math.inf,
) -> Iterator[Outcome]:
    """Run the cases one after the other, printing each; minutes: of each compute, after which no case begins."""
    model = read_copy(path)
    if n_layer is not None:
        keep_layers(model, min(n_layer, model.n_layer))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(model, Path(name))
        for compute in computes:
            cases = cases_of(model, compute, only, sample, seed)
            end = time.monotonic() + 60 * minutes
            for i, case in enumerate(cases, 1):
                if time.monotonic() > end:
                    break
                outcome = bench.run(case, compute)
                print(f"[{i}/{len(cases)}] {outcome}  ({outcome.seen.seconds:.1f} s)", flush=True)
                yield outcome


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Rows of compute, group, kind: n, verdicts, place right, tensor or key named, wrong; and a sum for each group."""
    lines = [f"{'compute':<8}{'group':<16}{'kind':<36}{'n':>4} {'place':>6} {'named':>6} {'wrong':>6}  verdicts"]
    rows: dict[tuple[str, str, str], list[Outcome]] = {}
    for o in outcomes:
        rows.setdefault((o.compute, o.case.group, o.case.kind), []).append(o)
    for (compute, group), _ in Counter((o.compute, o.case.group) for o in outcomes).items():
        some = {k: v for k, v in rows.items() if k[:2] == (compute, group)}
        some[compute, group, "ALL"] = [o for v in some.values() for o in v]
        for (_, _, kind), found in some.items():
            said = Counter(o.seen.verdict for o in found)
            causes = any(o.case.names for o in found)
            place = sum(o.place_right for o in found) if causes else "-"
            named = sum(o.named for o in found) if causes else "-"
            wrong = sum(not o.right for o in found)
            lines.append(f"{compute:<8}{group:<16}{kind:<36}{len(found):>4} {place:>6} {named:>6} {wrong:>6}  "
                         + ", ".join(f"{v} {n}" for v, n in said.most_common()))
    return lines


def shortfalls(outcomes: Sequence[Outcome]) -> list[str]:
    """Each bar that is not reached, in a sentence; empty where all are."""
    short = []
    for compute, group in dict.fromkeys((o.compute, o.case.group) for o in outcomes):
        some = [o for o in outcomes if (o.compute, o.case.group) == (compute, group)]
        share = sum(o.right for o in some) / len(some)
        if share < BARS.get(group, 0):
            short.append(f"{compute} {group}: {share:.1%} right, {BARS[group]:.0%} needed")
        never = sum(o.seen.verdict in NEVER.get(group, ()) for o in some)
        if never:
            short.append(f"{compute} {group}: {never} are {' or '.join(NEVER[group])}; none may be")
    return short


def report(outcomes: Sequence[Outcome], command: str, seconds: float) -> str:
    """The table, what was wrong, and the bars that are not reached."""
    wrong = [str(o) for o in outcomes if not o.right]
    unnamed = [str(o) for o in outcomes if o.right and not o.named and o.case.names]
    parts = [f"$ {command}   ({platform.machine()}, {os.cpu_count()} cores; {len(outcomes)} cases in {seconds:.0f} s)",
             *table(outcomes), "", f"wrong: {len(wrong)}", *wrong, "", f"right, cause not named: {len(unnamed)}",
             *unnamed, "", *(shortfalls(outcomes) or ["every bar is reached"])]
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--compute", default=",".join(COMPUTES))
    parser.add_argument("--only")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    started = time.monotonic()
    outcomes = list(run_suite(args.model, args.compute.split(","), only=args.only, sample=args.sample,
                              n_layer=args.layers, seed=args.seed, minutes=args.minutes))
    asked = {"--compute": args.compute, "--only": args.only, "--sample": args.sample, "--layers": args.layers}
    command = " ".join(["python -m tests.trained_suite --model", args.model.name,
                        *(f"{k} {v}" for k, v in asked.items() if v is not None)])
    text = report(outcomes, command, time.monotonic() - started)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 1 if shortfalls(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
