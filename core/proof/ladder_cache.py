"""Keep the results of an interrupted bisection in the user's cache, so that the same bisection goes on where it
stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from core.system.errors import FileError
from core.system.limits import CACHE_BYTES
from core.system.paths import cache_folder, is_own, make_own
from core.system.regular_file import read_text
from core.trace.record import Trace


class KnownPatches:
    """The patches that were measured, also by a bisection that was interrupted: place -> KL in nats.

    A cache that cannot be written is no error: all is then measured anew each time.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.kl = {} if path is None else _read(path)

    def add(self, place: str, kl: float) -> None:
        """Keep a new result, in memory and on the disk."""
        self.kl[place] = kl
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            make_own(self._path.parent)
            with self._path.open("a", encoding="ascii") as file:
                file.write(json.dumps([place, kl if kl != float("inf") else "inf"]) + "\n")


@contextlib.contextmanager
def open_ladder(a: Trace, b: Trace) -> Iterator[KnownPatches]:
    """Yield what is known of this very pair, by the bytes of its files; forgotten once the bisection is complete."""
    if a.digest is None or b.digest is None:
        yield KnownPatches(None)
        return
    path = cache_folder() / "ladders" / f"{_identity(a, b)}.jsonl"
    yield KnownPatches(path)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, float]:
    known: dict[str, float] = {}
    with contextlib.suppress(FileError, ValueError, TypeError, RecursionError):
        if not is_own(path):
            return known
        for line in read_text(path, CACHE_BYTES, "").splitlines():
            place, kl = json.loads(line)
            known[str(place)] = float(kl)
    return known


def _identity(a: Trace, b: Trace) -> str:
    sides = [[t.digest, asdict(t.facts), t.planted] for t in (a, b)]
    ids = [t.id for t in a.tokens]
    return hashlib.sha256(json.dumps([sides, ids], sort_keys=True, default=str).encode()).hexdigest()[:24]
