"""Let a script without judgement find planted bugs by commands alone: python -m tests.bench.agent [--n 50].

It follows the steps of `apr-tui guide`, reads nothing but the JSON documents, stops at the first exit code 1, and names
what that document names. A bug is planted in values (through the engine's tap) or in the bytes of a file; the script
gets a source that misbehaves and, where there is one, a good file. Prints a row a bug; exit 1 where one is not found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_tui.cli.main import main as run_command
from apr_tui.cli.papers.guide import STEPS
from core import session
from core.model.stages import Place, place_text, stage_named
from core.system.errors import UsageError
from tests.suite import PROMPTS, Case, below_floor, byte_cases, value_cases, write_models

MOST = 4  # commands
FEED = ("--tokens", ",".join(map(str, PROMPTS[0])))


@dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug. bad: the file that misbehaves, run by an engine with these words; good: a file that does not.

    feed: what both are fed; place: the truth, which the script never sees.
    """

    name: str
    bad: str
    good: str
    place: Place
    engine: tuple[str, ...] = ()
    feed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the script says: how many commands it took, the last one, and what that one named; None: nothing."""

    commands: int
    by: str
    place: Place | None = None
    tensor: str | None = None
    sentence: str = ""


def ask(words: Sequence[str]) -> tuple[int, Any]:
    """Run a command and return its exit code and its document."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = run_command([*words, "--json"])
    return code, json.loads(out.getvalue()) if out.getvalue() else None


def find(bug: Bug) -> Answer:
    """Follow the steps until one has exit code 1, and say what its document names."""
    taken = 0
    for taken, step in enumerate(STEPS, 1):
        files = [{"GOOD": bug.good, "BAD": bug.bad}[word] for word in step.words.split()]
        run = [] if step.command == "audit" else [*bug.engine, *bug.feed, "--threads", "1"]
        if bug.engine:
            files.reverse()  # --plant is of the first side
        code, told = ask([step.command, *files, *run, "--quiet"])
        if code == 1:
            return answer(step.command, taken, told)
    return Answer(taken, "nothing")


def answer(command: str, taken: int, told: Any) -> Answer:
    """What a document names."""
    if command == "audit":
        proof = next(f for f in told["findings"] if f["strength"] == "proof")
        return Answer(taken, command, tensor=proof["tensor"], sentence=proof["sentence"])
    first = told["first"]
    place = None if first is None else (first["layer"], first["stage"])
    return Answer(taken, command, place, sentence=told["reasons"][0])


def is_right(bug: Bug, said: Answer) -> bool:
    """Whether the place, or a tensor that its stage reads, was named."""
    layer, stage = bug.place
    tensors = {f"blk.{layer}.{name}.{kind}" for name in stage_named(stage).weights for kind in ("weight", "bias")}
    return said.place == bug.place or said.tensor in tensors


def bugs(folder: Path, n: int, seed: int = 0) -> Iterator[Bug]:
    """Two thirds in values on three architectures, one third in bytes of the demonstration."""
    draw, models = random.Random(seed), write_models(folder)
    in_bytes = draw.sample(list(byte_cases()), n // 3)
    in_values = list(value_cases(list(models)))
    draw.shuffle(in_values)
    real = (c for c in in_values if is_seen(models[c.model], c))
    for case in itertools.islice(real, n - len(in_bytes)):
        file = str(models[case.model])
        yield Bug(f"{case.model} {case.plant}", file, file, case.place, ("--plant", case.plant), FEED)
    for i, (fault, place) in enumerate(in_bytes):
        good, bad = session.write_demo(folder / f"demo{i}", fault=fault, force=True)
        yield Bug(f"demo {fault}", str(bad), str(good), place)


def is_seen(path: Path, case: Case) -> bool:
    """Whether the bug changes its value where it stands, by more than a check can tell."""
    try:
        return not below_floor(path, case, PROMPTS[0])
    except UsageError:  # it leaves the value as it was
        return False


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50)
    n, started, right, most = parser.parse_args().n, time.monotonic(), 0, 0
    print(f"{'planted':<36} {'commands':>8}  {'found by':<8} {'named':<28} right")
    with tempfile.TemporaryDirectory() as name:
        for bug in bugs(Path(name), n):
            said = find(bug)
            named = said.tensor or (place_text(said.place) if said.place else "-")
            is_found = is_right(bug, said) and said.commands <= MOST
            right, most = right + is_found, max(most, said.commands)
            print(f"{bug.name:<36} {said.commands:>8}  {said.by:<8} {named:<28} {'yes' if is_found else 'NO'}",
                  flush=True)
    print(f"{right} of {n} found, with {most} commands at most, in {time.monotonic() - started:.0f} s")
    return 0 if right == n else 1


if __name__ == "__main__":
    sys.exit(main())
