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
from core.notebook.result import ROWS, Notebook
from core.system import limits
from core.system.atomic_file import atomic_file
from core.system.cancel import IsCancelled
from core.system.errors import FileError, OutputError, UsageError, os_reason
from core.system.progress import Phase
from core.system.regular_file import read_file
from core.trace.events import Emit
from core.trace.run import Side

COLUMNS = TokenKl.__slots__
MARK = "state-of-kl"  # the file that says whose state a folder holds
DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A token of the text and why it differs; position: in the whole text."""

    position: int
    token: int
    text: str | None
    kl: float
    cause: Cause | None


@dataclass(frozen=True, slots=True, repr=False)
class KlResult(Notebook):
    """KL of B from A over a text. ids and tokens: of every token, in the text's order."""

    a: str
    b: str
    text: str
    summary: KlSummary
    worst: tuple[WorstToken, ...]
    ids: tuple[int, ...]
    tokens: TokenKl

    def sentences(self) -> list[str]:
        """The mean with its interval, the text, and how often both name the same token."""
        s = self.summary
        return [f"KL of {self.b} from {self.a}: {s.mean:.4g} nats a token (95 %: {s.interval[0]:.4g} to "
                f"{s.interval[1]:.4g}) over {s.tokens} tokens of {self.text}",
                f"the same first token {s.top1:.1%} of the time; floor {s.floor:.2g} nats"]

    def rows(self) -> list[dict[str, object]]:
        """Each token with its KL and what goes with it, as kl.csv has it."""
        numbers = {name: getattr(self.tokens, name).tolist() for name in COLUMNS}
        return [{"position": i, "token": token, **{name: numbers[name][i] for name in COLUMNS}}
                for i, token in enumerate(self.ids)]

    def rows_shown(self) -> list[dict[str, object]]:
        """The tokens that differ most."""
        rows = self.rows()
        return [rows[w.position] for w in self.worst[:ROWS]] or rows[:ROWS]


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
    every = TokenKl(*(np.concatenate([getattr(chunk, name) for chunk in done]) for name in COLUMNS))
    return KlResult(*names, text.name, summary, _worst(a, b, text, done, worst, emit, cancelled),
                    tuple(i for chunk in text.chunks for i in chunk), every)


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
    """A folder with each measured chunk's numbers, begun by a mark of everything that they depend on.

    A chunk's file is its numbers behind their sha256: what is torn or was changed is measured again.
    """

    folder: Path

    @staticmethod
    def begin(folder: Path, *told: object) -> ChunkStore:
        """Make it, or open that of the same run; UsageError where anything else stands there, OutputError."""
        key = hashlib.sha256(repr((MARK, *told)).encode()).hexdigest()
        mark = folder / MARK
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} exists and is no folder. Give another name to --out.")
            folder.mkdir(parents=True, exist_ok=True)
            if mark.is_file() and read_file(mark, limits.CACHE_BYTES, "") != key.encode():
                raise UsageError(f"{folder} holds another run's state (other files, settings or text). "
                                 "Give another --out, or remove it.")
            if not mark.is_file() and any(folder.iterdir()):
                raise UsageError(f"{folder} exists and holds no state of kl. Give another --out.")
            with atomic_file(mark) as part:
                part.write_text(key, encoding="ascii")
        except OSError as error:
            raise OutputError(f"{folder} could not be written: {os_reason(error)}. Give another --out.") from error
        return ChunkStore(folder)

    def read(self, index: int, n_token: int) -> TokenKl | None:
        """A chunk's numbers; None where they are not there, or not as they were written."""
        path = self.folder / f"{index}.f64"
        try:
            data = read_file(path, DIGEST + 8 * len(COLUMNS) * n_token, "")
        except FileError:
            return None
        told, numbers = data[:DIGEST], data[DIGEST:]
        if hashlib.sha256(numbers).digest() != told or len(numbers) != 8 * len(COLUMNS) * n_token:
            return None
        return TokenKl(*np.frombuffer(numbers, dtype="<f8").reshape(len(COLUMNS), n_token))

    def write(self, index: int, found: TokenKl) -> None:
        """Keep a chunk's numbers, whole or not at all; OutputError."""
        data = np.stack([np.asarray(getattr(found, name), dtype="<f8") for name in COLUMNS]).tobytes()
        path = self.folder / f"{index}.f64"
        try:
            with atomic_file(path) as part:
                part.write_bytes(hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise OutputError(f"{path} could not be written: {os_reason(error)}. Free some space; the same command "
                              "goes on from what is there.") from error
