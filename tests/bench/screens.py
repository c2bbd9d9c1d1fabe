"""Measure what the console writes for each key and how soon, at a pseudo-terminal: python -m tests.bench.screens MODEL.

Bytes are counted at the terminal's side; a latency is the time from the key to the last byte of its answer. Of a key
that is pressed RUNS times the median is told, with the most bytes. Times need a quiet machine, bytes do not.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import select
import statistics
import struct
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

QUIET_S = 0.4     # no byte for so long: the answer has ended
START_S = 30.0
RUNS = 3
SIZES = ((80, 24), (200, 60))
LIMITS = {"cursor down": 400, "open the layer": 4096, "leave the layer": 4096, "idle for 3 s": 0}  # bytes, at 80 x 24
KEYS: Sequence[tuple[str, bytes]] = (
    ("cursor down", b"\x1b[B"), ("cursor right", b"\x1b[C"), ("next metric", b"m"), ("open the layer", b"\r"),
    ("next stage", b"\x1b[B"), ("next layer", b"\x1b[C"), ("everything of the stage", b"\r"), ("back", b"\x1b"),
    ("leave the layer", b"\x1b"), ("overview", b"o"), ("overview away", b"o"), ("help", b"?"), ("leave help", b"q"),
    ("palette", b":"), ("leave the palette", b"\x1b"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What one key made the console write: bytes, and seconds from the key to the last of them (0 where none came)."""

    n_byte: int
    seconds: float


class Console:
    """A console at a pseudo-terminal of a size, in truecolor on a dark ground."""

    def __init__(self, model: Path, size: tuple[int, int]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            known = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", "COLORFGBG": "15;0"}
            kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            os.execve(sys.executable, [sys.executable, "-m", "apr_tui", str(model)], kept | known)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def read(self, quiet: float = QUIET_S, most: float = START_S) -> Answer:
        """Read until nothing came for a while."""
        begun, last, n_byte = time.monotonic(), 0.0, 0
        while time.monotonic() - begun < most and select.select([self.fd], [], [], quiet)[0]:
            n_byte += len(os.read(self.fd, 1 << 16))
            last = time.monotonic() - begun
        return Answer(n_byte, last)

    def press(self, keys: bytes) -> Answer:
        """Send keys and read the answer."""
        os.write(self.fd, keys)
        return self.read()

    def close(self) -> None:
        """Quit, and wait for the end."""
        os.write(self.fd, b"q")
        with contextlib.suppress(OSError):  # its side of the terminal is gone
            self.read(quiet=2.0)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def measure(model: Path, size: tuple[int, int]) -> dict[str, list[Answer]]:
    """Every key's answers, RUNS of each, and what is written until the trace stands and while nothing happens."""
    console = Console(model, size)
    found = {"start to whole trace": [console.read(quiet=2.5)]}
    for _ in range(RUNS):
        for name, keys in KEYS:
            found.setdefault(name, []).append(console.press(keys))
    found["idle for 3 s"] = [console.read(quiet=3.0, most=3.0)]
    console.close()
    return found


def table(model: Path) -> str:
    """The table of both sizes."""
    lines = [f"each key {RUNS} times: most bytes, median ms; {model.name}; python -m tests.bench.screens",
             f"{'':26}" + "".join(f"{f'{c} x {r}':>24}" for c, r in SIZES),
             f"{'':26}" + f"{'bytes':>12}{'ms':>12}" * len(SIZES) + f"{'at most':>12}"]
    measured = [measure(model, size) for size in SIZES]
    for name in measured[0]:
        cells = ""
        for found in measured:
            middle = 1000 * statistics.median(a.seconds for a in found[name])
            cells += f"{max(a.n_byte for a in found[name]):>12}{middle:>12.0f}"
        limit, most = LIMITS.get(name), max(a.n_byte for a in measured[0][name])
        word = "" if limit is None else f"{limit:>12} {'held' if most <= limit else 'MISSED'}"
        lines.append(f"{name:26}{cells}{word}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("MODEL", type=Path)
    sys.stdout.write(table(parser.parse_args().MODEL))
