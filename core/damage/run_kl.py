"""KL over a text, chunk by chunk: what is measured is kept in a folder, so that a killed run goes on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.damage.corpus import Corpus
from core.damage.kl import KlSummary, TokenKl, noise_floor, summarise, token_kl
from core.damage.worst import Cause, cause_of
from core.system.atomic_file import atomic_file
from core.system.cancel import IsCancelled
from core.system.errors import UsageError
from core.system.progress import Phase
from core.trace.events import Emit
from core.trace.run import Side

COLUMNS = TokenKl.__slots__


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A token of the text and why it differs; position: in the whole text."""

    position: int
    token: int
    text: str | None
    kl: float
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class KlResult:
    """KL of B from A over a text."""

    a: str
    b: str
    text: str
    summary: KlSummary
    worst: tuple[WorstToken, ...]


def measure_kl(
    a: Side, b: Side, names: tuple[str, str], text: Corpus, worst: int, state: ChunkStore | None, emit: Emit,
    cancelled: IsCancelled,
) -> KlResult:
    """Measure every chunk that the store does not hold, then find why the worst tokens differ."""
    done: list[TokenKl] = []
    for i, chunk in enumerate(text.chunks):
        found = None if state is None else state.read(i, len(chunk))
        if found is None:
            emit(Phase(f"chunk {i + 1} of {len(text.chunks)}"))
            found = token_kl(a, b, chunk, cancelled)
            if state is not None:
                state.write(i, found)
        done.append(found)
    emit(Phase("measuring the floor: A against A with rounding-size noise"))
    summary = summarise(done, noise_floor(a, text.chunks[0], cancelled))
    return KlResult(*names, text.name, summary, _worst(a, b, text, done, worst, emit, cancelled))


def _worst(
    a: Side, b: Side, text: Corpus, done: Sequence[TokenKl], count: int, emit: Emit, cancelled: IsCancelled
) -> tuple[WorstToken, ...]:
    places = [(float(kl), i, at) for i, chunk in enumerate(done) for at, kl in enumerate(chunk.kl)]
    starts = np.cumsum([0, *(len(chunk) for chunk in text.chunks)])
    found = []
    for n, (kl, i, at) in enumerate(sorted(places, key=lambda p: (-p[0], p[1], p[2]))[:count]):
        emit(Phase(f"finding the cause of worst token {n + 1} of {min(count, len(places))}"))
        token = text.chunks[i][at]
        cause = cause_of(a, b, text.chunks[i][:at + 1], cancelled) if kl > 0 and can_graft(a, b) else None
        found.append(WorstToken(int(starts[i]) + at, token, a.tokenizer.token_text(token), kl, cause))
    return tuple(found)


def can_graft(a: Side, b: Side) -> bool:
    """Whether the sides have the same layers, so that a value of one fits into the other."""
    return [layer.nodes.keys() for layer in a.model.arch.layers] == [
        layer.nodes.keys() for layer in b.model.arch.layers] and a.model.arch.d_model == b.model.arch.d_model


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """A folder with each measured chunk's numbers, under a key of everything that they depend on."""

    folder: Path
    key: str

    @staticmethod
    def open(folder: Path, *told: object) -> ChunkStore:
        """Open or make it; UsageError where it holds another run's numbers."""
        key = hashlib.sha256(repr(told).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "key"
        if mark.is_file() and mark.read_text() != key:
            raise UsageError(f"{folder} holds the state of another run. Give another --out, or remove it.")
        with atomic_file(mark) as part:
            part.write_text(key)
        return ChunkStore(folder, key)

    def read(self, index: int, n_token: int) -> TokenKl | None:
        """A chunk's numbers; None where they are not there, or torn."""
        try:
            raw = np.frombuffer((self.folder / f"{index}.f64").read_bytes(), dtype="<f8")
        except (OSError, ValueError):
            return None
        return TokenKl(*raw.reshape(len(COLUMNS), n_token)) if raw.size == len(COLUMNS) * n_token else None

    def write(self, index: int, found: TokenKl) -> None:
        """Keep a chunk's numbers, whole or not at all."""
        data = np.stack([np.asarray(getattr(found, name), dtype="<f8") for name in COLUMNS]).tobytes()
        with atomic_file(self.folder / f"{index}.f64") as part:
            part.write_bytes(data)
