"""Fuzz every reader and count what fails: python -m tests.fuzz --help says how

Each reader runs in a child process, in portions; a portion that crashes goes on behind the mutant that did it. All
counts must be 0: exit 1 otherwise. A row says how many mutants there were and how many were refused by a sentence.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.runner import COUNTED, Tally, fuzz_apart

HEAD = ("reader", "mutants", "refused", *COUNTED, "slowest ms", "MiB")


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
    began, tallies = time.monotonic(), dict[str, Tally]()
    for name in asked.only or READERS:
        tallies[name] = fuzz_apart(name, asked.mutants, asked.seed, asked.seconds)
        text = _table(tallies, asked.seed, time.monotonic() - began)
        print(text.splitlines()[-3], file=sys.stderr, flush=True)
        for what in tallies[name].examples:
            print(f"  {what}", file=sys.stderr, flush=True)
        if asked.out is not None:
            asked.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(tally.failed for tally in tallies.values()))


def _table(tallies: dict[str, Tally], seed: int, seconds: float) -> str:
    rows = [HEAD, *((name, *t.row()) for name, t in tallies.items())]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(str(cell).ljust(w) if i == 0 else str(cell).rjust(w)
                       for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    total = sum(t.mutants for t in tallies.values())
    return "\n".join([*lines, "", f"{total} mutants, seed {seed}, {seconds:.0f} s of one core"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
