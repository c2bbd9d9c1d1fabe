"""Kill a writer at every moment and look what is left: python -m tests.fuzz.kills [--kills 300] [--seed 0].

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
from collections.abc import Callable
from pathlib import Path

from core.demo.files import write_demo
from core.formats.open_model import open_model
from core.model.convert import convert
from core.system import atomic_folder, disk
from core.system.atomic_file import new_file
from core.system.atomic_folder import new_folder
from core.system.errors import AprError

Write = Callable[[Path, str], None]
CALLS = ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "fsync"),
         (atomic_folder, "exchange"))


def _file(folder: Path, text: str) -> None:
    with new_file(folder / "f", force=True) as part:
        part.write_text(text * 1000)


def _folder(folder: Path, text: str) -> None:
    with new_folder(folder / "b", force=True) as part:
        for name in ("manifest.json", "stats.csv"):
            (part / name).write_text('{"schema": "apr-tui/1", "sha256": {"stats.csv": ""}, "x": "%s"}' % (text * 1000))


def _without_exchange(folder: Path, text: str) -> None:
    atomic_folder.exchange = lambda left, right: False  # type: ignore[assignment]
    _folder(folder, text)


def _demo(folder: Path, text: str) -> None:
    write_demo(folder, force=True)


def _convert(folder: Path, text: str) -> None:
    convert(folder.parent / "source" / "demo.gguf", folder / "c.apr", force=True)


WRITERS: dict[str, Write] = {"file": _file, "folder": _folder, "two renames": _without_exchange, "demo": _demo,
                             "convert": _convert}


def is_whole(folder: Path) -> bool:
    """Say whether each thing that stands there under its own name is all of one writing."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            texts = {(path / name).read_text() for name in ("manifest.json", "stats.csv")}
            if len(texts) != 1:
                return False
        elif path.suffix in (".gguf", ".apr"):
            try:
                file = open_model(path)
                if file.verify is not None:
                    file.verify()
            except AprError:
                return False
        elif len({*path.read_text()}) != 1 or path.stat().st_size != 1000:
            return False
    return True


def killed(write: Write, folder: Path, text: str, at: int | None, seconds: float) -> bool:
    """Write in a child that is killed at its at-th moment, or after so many seconds; False where it was faster."""
    child = os.fork()
    if child == 0:
        try:
            os.close(2)
            if at is not None:
                _place(at)
            write(folder, text)
        finally:
            os._exit(0)
    if at is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


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


def try_writer(name: str, at: int | None, seconds: float) -> tuple[bool, str]:
    """Write once whole, kill the second writing, run a third: whether it was killed, and what is wrong then."""
    with tempfile.TemporaryDirectory(prefix="apr-kill-") as home:
        folder, write = Path(home) / "out", WRITERS[name]
        folder.mkdir()
        if name == "convert":
            write_demo(Path(home) / "source")
        write_apart = killed(write, folder, "a", 1 << 30, 0)
        assert not write_apart
        before = {p.name for p in folder.iterdir()}
        was_killed = killed(write, folder, "b", at, seconds)
        there = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
        aside = [p for p in folder.iterdir() if p.name.endswith(".old")]
        if not is_whole(folder) or (there != before and not (name == "two renames" and aside)):
            return was_killed, f"lost: {sorted(there)} of {sorted(before)}"
        killed(write, folder, "c", 1 << 30, 0)
        after = {p.name for p in folder.iterdir()}
        return was_killed, "" if after == before and is_whole(folder) else f"left: {sorted(after - before)}"


def run_kills(n_kill: int, seed: int, names: tuple[str, ...] = tuple(WRITERS)) -> tuple[int, int, list[str]]:
    """Return how many placed and random kills there were, and what was wrong after them."""
    wrong, placed, timed, draw = list[str](), 0, 0, random.Random(seed)
    for name in names:
        for at in range(1 << 10):
            was_killed, found = try_writer(name, at, 0)
            wrong += [f"{name}, moment {at}: {found}"] if found else []
            placed += was_killed
            if not was_killed:
                break
    while placed + timed < n_kill:
        name = draw.choice(names)
        was_killed, found = try_writer(name, None, draw.random() * (0.5 if name in ("demo", "convert") else 0.01))
        wrong += [f"{name}, a random moment: {found}"] if found else []
        timed += was_killed
    return placed, timed, wrong


def main() -> int:
    """Run and print what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.pop(disk.NO_FSYNC, None)
    placed, timed, wrong = run_kills(asked.kills, asked.seed)
    print(f"{placed + timed} kills ({placed} placed, {timed} at random): {len(wrong)} lost or left something")
    print("".join(f"  {line}\n" for line in wrong), end="")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
