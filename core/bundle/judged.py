"""Keep a verdict whole beside its tables, so that it can be opened again as it was found, and read it back.

judged.json holds what the CSV has no column for (states, floors, faults of the weights); the traces are bundles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from core.bundle.reader import read_bundle
from core.model.stages import Place, stage_named
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison, LayerBisection, Verdict
from core.proof.weights.fault import Overflow, WeightScan
from core.system.atomic_folder import MANIFEST, SIDES, TRACE
from core.system.errors import FileError, UsageError
from core.system.json_text import from_json, to_json
from core.system.limits import DOCUMENT_BYTES
from core.system.regular_file import read_file
from core.trace.measures import Difference, LocalError, SideName

JUDGED = "judged.json"
Judged = Comparison | Check | Bisection
T = TypeVar("T")
Entries = list[tuple[int | None, str, T]]  # layer, stage and what was measured there


@dataclass(frozen=True, slots=True)
class SavedPair:
    """A comparison without its traces. ladder: None of a comparison, or where nothing differs; is_bisection says it."""

    verdict: Verdict
    reasons: tuple[str, ...]
    scope: str
    first: tuple[int | None, str] | None
    token: int | None
    channel: int | None
    side: SideName | None
    measured: float | None
    floor: float | None
    error: LocalError | None
    why: str | None
    cells: Entries[Difference]
    is_bisection: bool
    ladder: LayerBisection | None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedCheck:
    """A check without its trace."""

    errors: Entries[LocalError]
    decoded: Entries[Difference]
    unmeasured: tuple[tuple[int | None, str], ...] | None
    overflow: Overflow | None
    scan: WeightScan
    doubt: str | None


def judged_text(judged: Judged) -> str:
    """Write a verdict as judged.json."""
    if isinstance(judged, Check):
        saved: SavedPair | SavedCheck = SavedCheck(
            _entries(judged.errors), _entries(judged.decoded), judged.unmeasured, judged.overflow, judged.scan,
            judged.doubt)
    else:
        c = judged.comparison if isinstance(judged, Bisection) else judged
        saved = SavedPair(
            c.verdict, c.reasons, c.scope, c.first, c.token, c.channel, c.side, c.measured, c.floor, c.error, c.why,
            _entries(c.cells), isinstance(judged, Bisection), judged.ladder if isinstance(judged, Bisection) else None,
            c.files)
    return to_json(saved) + "\n"


def read_judged(folder: Path) -> Judged:
    """Open the folder of a comparison, a bisection or a check; FileError names what is missing or damaged.

    A bisection's reproducer stays in its folder.
    """
    path, again = folder / JUDGED, "Run it again with --out."
    data = read_file(path, DOCUMENT_BYTES, f"An older apr-tui wrote none: open {folder / SIDES[0]} or run it again "
                                           "with --out.")
    manifest = from_json(read_file(folder / MANIFEST, DOCUMENT_BYTES, again), str(folder / MANIFEST), again)
    sums = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(sums, dict) or sums.get(JUDGED) != hashlib.sha256(data).hexdigest():
        raise FileError(f"{path} was changed after it was written. Run it again with --out.")
    if (folder / TRACE).is_dir():
        check = _read(SavedCheck, data, path)
        return Check(read_bundle(folder / TRACE), _places(check.errors), _places(check.decoded), check.unmeasured,
                     check.overflow, check.scan, check.doubt)
    s = _read(SavedPair, data, path)
    a, b = (read_bundle(folder / side) for side in SIDES)
    pair = Comparison(s.verdict, s.reasons, a, b, s.scope, s.first, s.token, s.channel, s.side, s.measured, s.floor,
                      s.error, _places(s.cells), s.why, s.files)
    return Bisection(pair, s.ladder) if s.is_bisection else pair


def _read(kind: type[T], data: bytes, path: Path) -> T:
    try:
        # not strict: nan and inf stand as text
        found = msgspec.convert(from_json(data, str(path), "Run it again with --out."), kind, strict=False)
        for _, stage in _named(found):
            stage_named(stage)
        return found
    except (msgspec.ValidationError, UsageError, ValueError) as error:  # ValueError: half a surrogate pair as a word
        raise FileError(f"{path}: {error}. Run it again with --out.") from error


def _named(saved: object) -> Iterator[Place]:
    """Every place that a saved verdict names."""
    if isinstance(saved, SavedPair):
        rungs = () if saved.ladder is None else saved.ladder.rungs
        yield from (*([saved.first] if saved.first else []), *_places(saved.cells), *(rung.place for rung in rungs))
    if isinstance(saved, SavedCheck):
        yield from (*_places(saved.errors), *_places(saved.decoded), *(saved.unmeasured or ()))


def _entries(found: Mapping[Place, T]) -> Entries[T]:
    return [(*place, value) for place, value in found.items()]


def _places(entries: Entries[T]) -> dict[Place, T]:
    return {(layer, stage): value for layer, stage, value in entries}
