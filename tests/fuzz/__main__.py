"""Fuzz every reader and count what fails: python -m tests.fuzz --help says how

Each reader runs in a child process, in portions; a portion that crashes goes on behind the mutant that did it. All
counts must be 0: exit 1 otherwise. A row says how many mutants there were and how many were refused by a sentence. With
--out, rows of readers that did not run this time stay in the file.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.runner import COUNTED, fuzz_apart

HEAD = ("reader", "mutants", "refused", *COUNTED, "slowest ms", "MiB", "seconds")
Row = tuple[str, ...]


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[*READERS])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of one reader at most")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ["APR_TUI_NO_FSYNC"] = "1"
    rows = _read_table(asked.out) if asked.out is not None and asked.out.exists() else {}
    failed = 0
    for name in asked.only or READERS:
        began = time.process_time() + os.times().children_user
        tally = fuzz_apart(name, asked.mutants, asked.seed, asked.seconds)
        spent = time.process_time() + os.times().children_user - began
        rows[name] = (name, *map(str, tally.row()), f"{spent:.0f}")
        failed += tally.failed
        print("  ".join(rows[name]), *(f"\n  {what}" for what in tally.examples), file=sys.stderr, flush=True)
        if asked.out is not None:
            asked.out.write_text(_table(rows, asked.seed), encoding="utf-8")
    sys.stdout.write(_table(rows, asked.seed))
    return int(bool(failed))


def _table(found: Mapping[str, Row], seed: int) -> str:
    """The rows in the order of READERS, and their sums."""
    rows = [HEAD, *(found[name] for name in READERS if name in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    sums = {name: sum(int(row[HEAD.index(name)]) for row in rows[1:]) for name in ("mutants", *COUNTED, "seconds")}
    told = ", ".join(f"{sums[name]} {name}" for name in COUNTED)
    return "\n".join([*lines, "", f"{len(rows) - 1} of {len(READERS)} readers, {sums['mutants']} mutants, seed {seed}, "
                      f"{sums['seconds']} s of one core: {told}"]) + "\n"


def _read_table(path: Path) -> dict[str, Row]:
    """The rows of an earlier run."""
    rows = (tuple(re.split(r"  +", line)) for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: row for row in rows if len(row) == len(HEAD) and row != HEAD}


if __name__ == "__main__":
    sys.exit(main())
