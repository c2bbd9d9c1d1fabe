"""Read token shards: memory-mapped u32, cut into windows of seq + 1, in a seeded order with a cursor.

They are written by corpus.py. A window never crosses a shard; the remainder of a shard is dropped. An epoch of the
data is one permutation of its windows, so the cursor (windows used so far) alone says where the order stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.system.errors import FileError, UsageError, os_reason
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES
from core.system.mapped_file import map_file, refuse_cut
from core.system.regular_file import read_file, refuse_irregular

Tokens = npt.NDArray[np.uint32]
Windows = npt.NDArray[np.int64]
MANIFEST = "manifest.json"
HELD_OUT = 100  # of published shards, which name no held-out part, one window in so many at the end is held out


@dataclass(frozen=True, slots=True)
class Shards:
    """An opened corpus: its token files by part, and what its manifest says."""

    folder: Path
    train: tuple[Tokens, ...] = field(repr=False)
    val: tuple[Tokens, ...] = field(repr=False)
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def n_train(self) -> int:
        """Training tokens."""
        return sum(len(shard) for shard in self.train)


def open_shards(folder: Path, n_vocab: int) -> Shards:
    """Open a folder of *.bin, or one file; FileError (a damaged shard), UsageError (a token outside the vocabulary)."""
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.bin"))
    base = folder.parent if folder.is_file() else folder
    manifest = _read_manifest(base / MANIFEST)
    maps = {path.name: _map(path) for path in paths}
    if not maps:
        raise FileError(f"{folder} has no *.bin token shards.")
    for name, tokens in maps.items():
        top = max(int(tokens[at : at + (1 << 24)].max()) for at in range(0, len(tokens), 1 << 24))
        if top >= n_vocab:
            raise UsageError(f"{base / name} holds token {top}; the model's vocabulary has ids 0 to {n_vocab - 1}. "
                             "Give the --config or --tokenizer that the shards were made for.")
    said, found = manifest.get("tokens"), sum(map(len, maps.values()))
    if isinstance(said, int) and said != found and not folder.is_file():
        raise FileError(f"{base / MANIFEST} says {said} tokens, the shards hold {found}. Make the shards again.")
    parts = {row["file"]: row.get("split") for row in manifest.get("shards", ())}
    val = tuple(tokens for name, tokens in maps.items() if parts.get(name) == "val")
    train = tuple(tokens for name, tokens in maps.items() if parts.get(name) != "val")
    return Shards(base, train, val, manifest) if val else _hold_out(base, train, manifest)


def cut(shards: tuple[Tokens, ...], seq: int) -> Windows:
    """Return the windows as (shard, start) rows."""
    rows = [np.stack((np.full(n, i), np.arange(n) * (seq + 1)), 1)
            for i, shard in enumerate(shards) if (n := len(shard) // (seq + 1))]
    return np.concatenate(rows).astype(np.int64) if rows else np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """The seeded order of the training windows."""

    shards: tuple[Tokens, ...] = field(repr=False)
    windows: Windows = field(repr=False)
    seq: int
    seed: int

    def batch(self, cursor: int, n_window: int) -> Tokens:
        """Return windows cursor .. cursor + n_window of the endless order, [n_window, seq + 1]; FileError if cut."""
        out = np.empty((n_window, self.seq + 1), np.uint32)
        for row in range(n_window):
            epoch, at = divmod(cursor + row, len(self.windows))
            shard, start = self.windows[permutation(self.seed, epoch, len(self.windows))[at]]
            out[row] = self.shards[shard][start : start + self.seq + 1]
        refuse_cut()  # what is gone reads as zeros, which are tokens
        return out


def make_order(shards: Shards, seq: int, seed: int) -> Order:
    """Order the training windows; UsageError where no shard holds one."""
    windows = cut(shards.train, seq)
    if not len(windows):
        raise UsageError(f"{shards.folder} has {shards.n_train} training tokens; one window takes {seq + 1}. "
                         "Give more text, or a smaller --seq.")
    return Order(shards.train, windows, seq, seed)


def held_out(shards: Shards, seq: int, n_window: int) -> Tokens:
    """Return at most n_window validation windows, spread evenly, the same each time; UsageError where there is none."""
    windows = cut(shards.val, seq)
    if not len(windows):
        found = sum(map(len, shards.val))
        raise UsageError(f"{shards.folder} holds out {found} tokens for validation; one window takes {seq + 1}. "
                         "Give more text, or a smaller --seq.")
    keep = np.unique(np.linspace(0, len(windows) - 1, min(n_window, len(windows))).astype(np.int64))
    return np.stack([shards.val[shard][start : start + seq + 1] for shard, start in windows[keep]])


def batch_hash(tokens: Tokens) -> str:
    """Identify a batch: 16 hex digits of SHA-256 over its tokens."""
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()[:16]


_LAST: dict[tuple[int, int, int], npt.NDArray[np.int64]] = {}


def permutation(seed: int, epoch: int, n_window: int) -> npt.NDArray[np.int64]:
    """Return the order of an epoch of the data; the two newest are kept."""
    key = (seed, epoch, n_window)
    if key not in _LAST:
        while len(_LAST) >= 2:
            _LAST.pop(next(iter(_LAST)))
        _LAST[key] = np.random.default_rng([seed, epoch]).permutation(n_window)
    return _LAST[key]


def _hold_out(base: Path, shards: tuple[Tokens, ...], manifest: Mapping[str, Any]) -> Shards:
    """Hold out the end of the last shard, at a document's end where the manifest names the end token."""
    last, end = shards[-1], manifest.get("eos")
    at = len(last) - max(1, sum(map(len, shards)) // HELD_OUT)
    at = max(at, len(last) // 2)
    if isinstance(end, int):
        ends = np.flatnonzero(last[at:] == end)
        at += int(ends[0]) + 1 if len(ends) and at + int(ends[0]) + 1 < len(last) else 0
    return Shards(base, (*shards[:-1], last[:at]), (last[at:],), manifest)


def _read_manifest(path: Path) -> Mapping[str, Any]:
    again = "Make the shards again."
    try:
        if not path.exists():
            return {}
    except OSError as error:
        raise FileError(f"{path} could not be read: {os_reason(error)}. {again}") from error
    manifest = from_json(read_file(path, DOCUMENT_BYTES, again), str(path), again)
    if not isinstance(manifest, dict):
        raise FileError(f"{path} is a {type(manifest).__name__}; an object was needed. {again}")
    rows = manifest.get("shards", [])
    names = [row.get("file") if isinstance(row, dict) else None for row in rows] if isinstance(rows, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise FileError(f"{path}: shards is not a list of {{file, split}}. {again}")
    return manifest


def _map(path: Path) -> Tokens:
    try:
        refuse_irregular(path, "Make the shard again.")
        size = path.stat().st_size
        if not size or size % 4:
            raise FileError(f"{path} has {size} bytes; whole u32 tokens of 4 bytes were needed. Make the shard again.")
        return map_file(path).view("<u4")
    except (OSError, ValueError) as error:
        why = os_reason(error)
        raise FileError(f"{path} could not be opened: {why}. Check the path and its permissions.") from error
