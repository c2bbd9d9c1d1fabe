"""Kill a writer at every moment and look what is left: python -m tests.fuzz.kills [--kills 800] [--seed 0].

Placed kills first: before and after each call that changes a name (rename, replace, exchange, unlink, rmdir, mkdir) and
each sync. Then kills at random times. After each, the old thing or the new one must stand, whole; after one more run
nothing may be left beside it. Exit 1 where something was lost or left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.system import atomic_folder, disk
from core.system.rests import is_rest_name
from tests.fuzz.runner import in_memory
from tests.fuzz.writers import WRITERS, Writer, is_whole

CALLS = ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "fsync"),
         (atomic_folder, "exchange"))
PATIENCE_S = 60


def write_apart(
    write: Callable[[Path, str], object], folder: Path, text: str, at: int | None = None, seconds: float | None = None,
) -> int:
    """Write in a child, killed at its at-th moment or after so many seconds, where it was no faster: its exit code."""
    def work() -> bool:
        if at is not None:
            _place(at)
        write(folder, text)
        return True

    child = _fork(work)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fork(work: Callable[[], object]) -> int:
    """Do it in a child, as all here is done: a library's threads, once they are started, are gone in a later child."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.alarm(PATIENCE_S)
            code = int(not work())
        except BaseException:  # noqa: BLE001 (its code tells of it)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def stands(writer: Writer, folder: Path) -> bool:
    """Whether what stands there is whole."""
    return os.waitpid(_fork(lambda: is_whole(writer, folder)), 0)[1] == 0


def _place(at: int) -> None:
    left = [at]

    def die() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for module, name in CALLS:
        def watched(*args: object, real: Callable[..., object] = getattr(module, name), **named: object) -> object:  # noqa: B008
            die()
            done = real(*args, **named)
            die()
            return done

        setattr(module, name, watched)


@dataclass
class Tally:
    """Of one writer: kills at a placed moment, kills at a random one, and what was wrong after them."""

    placed: int = 0
    random: int = 0
    wrong: list[str] = field(default_factory=list)


def try_writer(
    writer: Writer, at: int | None, seconds: float | None, is_first: bool = False
) -> tuple[bool, str]:
    """Write once whole, kill the second writing, run a third: whether it was killed, and what is wrong then.

    is_first: kill the first writing, of which nothing need stand.
    """
    with tempfile.TemporaryDirectory(prefix="apr-kill-", dir=in_memory()) as home:
        folder = Path(home) / "out"
        folder.mkdir()
        assert is_first or write_apart(writer.write, folder, "a") == 0
        was_killed = write_apart(writer.write, folder, "b", at, seconds) == -signal.SIGKILL
        if not is_first and not stands(writer, folder):
            return was_killed, f"lost: {sorted(p.name for p in folder.rglob('*'))}"
        if write_apart(writer.write, folder, "c") != 0:
            return was_killed, "the next run failed"
        rests = sorted(p.name for p in folder.rglob("*") if is_rest_name(p.name))
        return was_killed, f"left: {rests}" if rests or not stands(writer, folder) else ""


def run_kills(n_kill: int, seed: int, names: tuple[str, ...] = tuple(WRITERS)) -> dict[str, Tally]:
    """Kill every writer at each of its moments, then at random ones until there were so many kills in all."""
    tallies, draw = {name: Tally() for name in names}, random.Random(seed)
    for name, tally in tallies.items():
        for is_first in (True, False):
            for at in range(1 << 10):
                was_killed, found = try_writer(WRITERS[name], at, None, is_first)
                where = f"{name}, {'first' if is_first else 'next'} writing, moment {at}"
                tally.wrong += [f"{where}: {found}"] if found else []
                tally.placed += was_killed
                if not was_killed:
                    break
        print(f"{name}: {tally.placed} placed", file=sys.stderr, flush=True)
    while sum(t.placed + t.random for t in tallies.values()) < n_kill:
        name = draw.choice(names)
        was_killed, found = try_writer(WRITERS[name], None, draw.random() * WRITERS[name].seconds)
        tallies[name].wrong += [f"{name}, a random moment: {found}"] if found else []
        tallies[name].random += was_killed
    return tallies


def main() -> int:
    """Run and print the table, and what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills")
    parser.add_argument("--kills", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ.pop(disk.NO_FSYNC, None)
    tallies = run_kills(asked.kills, asked.seed)
    text = table(tallies, asked.seed)
    print(text, *(f"  {line}\n" for t in tallies.values() for line in t.wrong), sep="", end="")
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    return int(any(t.wrong for t in tallies.values()))


def table(tallies: Mapping[str, Tally], seed: int) -> str:
    """A line a writer, and their sums."""
    rows = [(name, t.placed, t.random, len(t.wrong)) for name, t in tallies.items()]
    lines = [f"{'writer':<24}{'placed':>8}{'random':>8}{'lost or left':>14}"]
    lines += [f"{name:<24}{placed:>8}{timed:>8}{wrong:>14}" for name, placed, timed, wrong in rows]
    placed, timed, wrong = (sum(row[i] for row in rows) for i in (1, 2, 3))
    return "\n".join([*lines, "", f"{placed + timed} kills ({placed} placed, {timed} at random), seed {seed}: {wrong} "
                      "lost or left something"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
