"""Plant conversion faults into tiny models of every family and count how many the audit names: a table for evidence/.

    python -m tests.original_suite [--rounds N] [--out FILE]

Each fault is planted in each family that has a place for it, in another place and type each round. Named: a finding has
the tensor (or key) and a kind of the fault's row, and no finding is about anything else.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.audit.finding import Finding
from core.audit.original import compare_with_original
from tests.audit.original_families import FAMILIES, make, write
from tests.audit.original_faults import FAULTS, Fault

QUANTS = ("F32", "F16", "Q8_0", "BF16")
COARSE = ("Q4_0", "Q5_0")
ROUNDS = 4


@dataclass(frozen=True)
class Trial:
    """One planted fault and what was said of it. place: tensor or key; exact: nothing else was named."""

    fault: Fault
    family: str
    quant: str
    place: str
    findings: tuple[Finding, ...]

    @property
    def is_named(self) -> bool:
        return any(f.kind in self.fault.kinds and self._is_about(f) for f in self.findings)

    @property
    def is_exact(self) -> bool:
        exchanged = "exchanged" in self.fault.name
        return self.is_named and len(self.findings) <= 1 + exchanged

    def _is_about(self, finding: Finding) -> bool:
        if self.place.startswith("tokenizer"):
            return True
        return finding.tensor == self.place or (finding.tensor is None and finding.sentence.startswith(self.place))


def try_fault(fault: Fault, family: str, number: int, folder: Path) -> Trial | None:
    """Plant a fault in a family's model; None where it has no place for it."""
    made, random = make(family, number), np.random.default_rng([number, len(fault.name), len(family)])
    place = fault.plant(made, random)
    if place is None:
        return None
    quant = [*QUANTS, *COARSE][number % 6]
    quant = "F16" if "merge" in fault.name and quant in COARSE else quant
    path, original = write(made, folder, quant, 1 + number % 2)
    found = compare_with_original(path, original, cancel=lambda: False).findings
    return Trial(fault, family, quant, place, found)


def trials(rounds: int, faults: tuple[Fault, ...] = FAULTS) -> Iterator[Trial]:
    for fault in faults:
        for family in FAMILIES:
            for number in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    trial = try_fault(fault, family, number, Path(folder))
                if trial is not None:
                    yield trial


def clean_alarms(rounds: int) -> tuple[int, int]:
    """Findings on models without a fault, and how many models."""
    n = alarms = 0
    for family in FAMILIES:
        for number in range(rounds * 2):
            with tempfile.TemporaryDirectory() as folder:
                sides = write(make(family, 100 + number), Path(folder), [*QUANTS, *COARSE][number % 6])
                alarms += len(compare_with_original(*sides, cancel=lambda: False).findings)
                n += 1
    return alarms, n


def table(found: list[Trial], clean: tuple[int, int]) -> str:
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    families: dict[str, set[str]] = defaultdict(set)
    for trial in found:
        rows[trial.fault.name].update({"planted": 1, "named": trial.is_named, "alone": trial.is_exact})
        families[trial.fault.name].add(trial.family)
    lines = ["Conversion faults beside an original: python -m tests.original_suite", "",
             f"{'fault':<26}{'families':>9}{'planted':>9}{'named':>7}{'alone':>7}"]
    lines += [f"{name:<26}{len(families[name]):>9}{n['planted']:>9}{n['named']:>7}{n['alone']:>7}"
              for name, n in rows.items()]
    named, alone = (sum(n[k] for n in rows.values()) for k in ("named", "alone"))
    lines += [f"{'all':<26}{len({t.family for t in found}):>9}{len(found):>9}{named:>7}{alone:>7}", "",
              "named: tensor (or key) and kind; alone: and no other finding",
              f"no fault: {clean[0]} findings on {clean[1]} models; families: {', '.join(FAMILIES)}",
              f"types: {', '.join((*QUANTS, *COARSE))}, in turn; every second original in two shards"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = list(trials(asked.rounds))
    for trial in [t for t in found if not t.is_exact]:
        how = "not alone" if trial.is_named else "NOT NAMED"
        print(f"{how}: {trial.fault.name} in {trial.family} {trial.quant} {trial.place}: "
              f" {[(f.kind, f.sentence[:120]) for f in trial.findings[:3]]}")
    text = table(found, clean_alarms(asked.rounds))
    print(text)
    if asked.out is not None:
        asked.out.write_text(text)
    return 0 if all(t.is_named for t in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
