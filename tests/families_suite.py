"""The suite of the families: on every row of their table, every bug at every stage, and bytes changed in every tensor.

usage: python -m tests.families_suite [--rows NAME ...] [--sample N]

Prints a table of the rows by part; exit 1 where fewer than 98 % are named at their place. The files are tiny and random
(tests/support/family_rows.py), one layer of each kind. Value faults go through a check of the file alone: every bug
that an operation can have, and two of those that any value can have, in turn. Byte faults go through `compare` with a
clean partner; a tensor's place is the first stage that reads it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import numpy as np

from core import session
from core.faults.value_faults import VALUE_FAULTS
from core.formats.architectures import ARCHS
from core.formats.open_model import open_model
from core.model.arch import Arch
from core.model.lockstep import run_lockstep
from core.model.stages import Place, place_order, place_text
from core.proof.check import check_stages
from core.proof.distance import nmse
from core.system.cancel import never
from core.system.errors import UsageError
from core.trace.measures import BAD_FACTOR
from core.trace.request import Prompt, Source
from core.trace.run import Side, open_side
from core.trace.taps import chain, record_values
from tests.support.families import write_family
from tests.support.family_rows import case_of

IDS = (3, 17, 5, 42, 42, 7, 90, 1, 8, 11)
LEAST = 0.98  # named at their place, of those that can be seen
ANY = tuple(kind for kind, row in VALUE_FAULTS.items() if row.value_only)
PACKED = ("nibbles", "scale-min")  # of quantised weights: the files are F32
BYTES = ("doubled", "exchanged")
GOOD = ("NAMED", "BELOW FLOOR", "NOTHING CHANGES", "UNREACHED")


@dataclass(frozen=True, slots=True)
class Fault:
    """A bug in one row's file: a value's kind at a place, or what was done to a tensor."""

    row: str
    kind: str
    place: Place
    tensor: str = ""

    @property
    def text(self) -> str:
        return f"{self.row} {self.kind}@{self.tensor or place_text(self.place)}"


def value_faults(row: str, side: Side) -> Iterator[Fault]:
    """Each bug that a stage's own operation can have, and two in turn of those that any value can have."""
    turn = 0
    for layer in _one_of_each_kind(side.model.arch):
        for stage in side.model.arch.layers[layer].nodes:
            own = [kind for kind, fault in VALUE_FAULTS.items()
                   if not (fault.value_only or fault.choice or kind in PACKED)
                   and fault.stands(side.model, layer, stage)]
            for kind in (*own, *(ANY[(turn + i) % len(ANY)] for i in range(2))):
                yield Fault(row, kind, (layer, stage))
            turn += 2


def byte_faults(row: str, side: Side) -> Iterator[Fault]:
    """What a wrong writer may do to each tensor that a stage says it reads."""
    arch = side.model.arch
    for layer in _one_of_each_kind(arch):
        prefix = arch.layers[layer].prefix
        for turn, name in enumerate(n for n in side.model.file.weights if n.startswith(prefix)):
            short = name.removeprefix(prefix).removesuffix(".weight").removesuffix(".bias").removesuffix(".scale")
            places = [(layer, s) for s, node in arch.layers[layer].nodes.items() if short in node.weights]
            if places:
                yield Fault(row, BYTES[turn % 2], min(places, key=place_order), name)


def run_value_fault(side: Side, fault: Fault) -> str:
    """NAMED, BELOW FLOOR, NOTHING CHANGES, or what went wrong."""
    planted = open_side(side.model.file, "cpu", plant=f"{fault.kind}@{place_text(fault.place)}")
    try:
        errors = check_stages(planted, IDS, cancelled=never)
    except UsageError:
        return "NOTHING CHANGES"
    first = min((p for p, e in errors.items() if e.is_bad), key=place_order, default=None)
    if first is None:
        return "BELOW FLOOR" if _is_below_floor(planted, fault.place) else "MISSED"
    return "NAMED" if first == fault.place else f"WRONG PLACE {place_text(first)}"


def run_byte_fault(path: Path, folder: Path, fault: Fault) -> str:
    """NAMED, UNREACHED, or what went wrong."""
    def change(name: str, array: np.ndarray) -> np.ndarray:
        if name != fault.tensor:
            return array
        flat = array.copy().reshape(-1)
        if fault.kind == "doubled" or len(flat) < 2:
            flat[::7] *= 2
        else:
            flat = np.roll(flat, len(flat) // 2)
        return flat.reshape(array.shape)

    bad = write_family(folder / "bad.gguf", case_of(fault.row), change=change)
    result = session.compare(Source(path, threads=1), Source(bad, threads=1), Prompt(tokens=IDS))
    if result.verdict == "H2" and result.first == fault.place:
        return "NAMED" if any(fault.tensor in line for line in result.reasons) else "NAMED WITHOUT ITS TENSOR"
    if result.verdict == "INCONCLUSIVE" and any(fault.tensor in line for line in result.reasons):
        return "UNREACHED"
    return f"{result.verdict} at {place_text(result.first) if result.first else 'no place'}"


def run_suite(rows: Sequence[str], sample: int | None = None) -> dict[str, Counter[str]]:
    """Run all of a row's faults, or a sample of each part, and count the outcomes by row and part."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row in rows:
            path = write_family(folder / f"{row}.gguf", case_of(row))
            side = open_side(open_model(path), "cpu", threads=1)
            for part, faults in (("values", value_faults(row, side)), ("bytes", byte_faults(row, side))):
                counts = found[f"{row} {part}"] = Counter()
                for fault in _some(list(faults), sample):
                    outcome = run_value_fault(side, fault) if part == "values" else run_byte_fault(path, folder, fault)
                    counts[outcome] += 1
                    if outcome not in GOOD:
                        print(f"  {fault.text}: {outcome}", flush=True)
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=list(ARCHS))
    parser.add_argument("--sample", type=int)
    arguments = parser.parse_args()
    started = time.monotonic()
    found = run_suite(arguments.rows or list(ARCHS), arguments.sample)
    for part, counts in found.items():
        print(f"{part:<24} {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))}")
    total = sum((*found.values(),), Counter[str]())
    seen = {outcome: n for outcome, n in total.items() if outcome not in GOOD[1:]}
    rate = total["NAMED"] / max(1, sum(seen.values()))
    print(f"{sum(total.values())} faults on {len(arguments.rows or ARCHS)} rows in {time.monotonic() - started:.0f} s: "
          f"{rate:.1%} of {sum(seen.values())} that can be seen are named at their place")
    return 0 if rate >= LEAST else 1


def _one_of_each_kind(arch: Arch) -> list[int]:
    return sorted({layer.kind: layer.index for layer in reversed(arch.layers)}.values())


def _some(faults: list[Fault], sample: int | None) -> list[Fault]:
    return faults if sample is None else random.Random(0).sample(faults, min(sample, len(faults)))


def _is_below_floor(side: Side, place: Place) -> bool:
    """Whether a planted bug changes its value by less than a check can tell."""
    before: dict[Place, object] = {}
    after: dict[Place, object] = {}
    run_lockstep([side.forward_run(IDS, chain(chain(record_values(before), side.bug()), record_values(after)))])
    changed = nmse(before[place], after[place])
    return changed is not None and changed[0] <= BAD_FACTOR * 1e-13


if __name__ == "__main__":
    sys.exit(main())
