"""KL over a text, chunk by chunk: what is measured is kept in a folder, so that a killed run goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.damage.cache_bill import HeadCost, cache_bill
from core.damage.corpus import Corpus
from core.damage.kl import KlSummary, Outside, TokenKl, noise_floor, summarise, token_kl
from core.damage.ranks import ALONE, Ranks
from core.damage.worst import Cause, cause_from, cause_of, cause_to
from core.notebook.result import ROWS, Notebook
from core.system import limits
from core.system.atomic_file import atomic_file
from core.system.cancel import IsCancelled
from core.system.errors import FileError, OutputError, UsageError, os_reason
from core.system.progress import Phase
from core.system.regular_file import read_file
from core.system.rests import is_rest_name
from core.trace.events import Emit
from core.trace.run import Side

COLUMNS = TokenKl.__slots__
MARK = "state-of-kl"  # the file that says whose state a folder holds
STATE = (".f64", ".cause")  # ends of its files' names
DIGEST = 32  # bytes of a sha256
CAUSE_BYTES = 1 << 16


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
    """KL of B from A over a text. ids and tokens: of every token, in the text's order.

    cache: what B's quantised KV cache costs A by layer and head, where A has none.
    """

    a: str
    b: str
    text: str
    summary: KlSummary
    worst: tuple[WorstToken, ...]
    ids: tuple[int, ...]
    tokens: TokenKl
    cache: tuple[HeadCost, ...] = ()

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


@dataclass(frozen=True, slots=True)
class KlOptions:
    """worst: tokens to explain. state: where what is measured is kept. ranks: the processes that share the work."""

    worst: int = 20
    state: ChunkStore | None = None
    ranks: Ranks = ALONE
    emit: Emit = lambda event: None
    cancelled: IsCancelled = lambda: False


def measure_kl(
    a: Side | Outside, b: Side | Outside, names: tuple[str, str], text: Corpus, ask: KlOptions
) -> KlResult:
    """Measure every chunk that the store does not hold, then find why the worst tokens differ.

    Every process of a torchrun comes to the same result.
    """
    mine: dict[int, TokenKl] = {}
    for i, chunk in enumerate(text.chunks):
        if not ask.ranks.is_mine(i):
            continue
        found = None if ask.state is None else ask.state.read(i, len(chunk))
        if found is None:
            ask.emit(Phase(f"chunk {i + 1} of {len(text.chunks)}", i + 1, len(text.chunks)))
            found = token_kl(a, b, chunk, ask.cancelled)
            if ask.state is not None:
                ask.state.write(i, found)
        mine[i] = found
    done = list(ask.ranks.share(mine).values())
    ask.emit(Phase("measuring the floor: A against A with rounding-size noise"))
    here_a, here_b = (x if isinstance(x, Side) else x.side for x in (a, b))
    summary = summarise(done, noise_floor(here_a, text.chunks[0], ask.cancelled))
    every = TokenKl(*(np.concatenate([getattr(chunk, name) for chunk in done]) for name in COLUMNS))
    both_here = isinstance(a, Side) and isinstance(b, Side)
    worst = _worst(here_a, here_b, both_here, text, done, ask)
    cache = _cache(here_a, here_b, text, ask.emit, ask.cancelled) if both_here else ()
    return KlResult(*names, text.name, summary, worst, tuple(i for chunk in text.chunks for i in chunk), every, cache)


def _cache(a: Side, b: Side, text: Corpus, emit: Emit, cancelled: IsCancelled) -> tuple[HeadCost, ...]:
    if b.model.kv.is_exact or not a.model.kv.is_exact:
        return ()
    emit(Phase(f"billing the cache's heads ({b.model.kv.text})"))
    return cache_bill(a, b.model.kv, text, cancelled)


def _worst(
    a: Side, b: Side, both_here: bool, text: Corpus, done: Sequence[TokenKl], ask: KlOptions
) -> tuple[WorstToken, ...]:
    places = [(float(kl), i, at) for i, chunk in enumerate(done) for at, kl in enumerate(chunk.kl)]
    worst = sorted(places, key=lambda p: (-p[0], p[1], p[2]))[:ask.worst]
    starts = np.cumsum([0, *(len(chunk) for chunk in text.chunks)])
    mine: dict[int, Cause | None] = {}
    for n, (kl, i, at) in enumerate(worst):
        if not ask.ranks.is_mine(n):
            continue
        position = int(starts[i]) + at
        cause = None if ask.state is None else ask.state.read_cause(position)
        if cause is None and kl > 0 and both_here and can_graft(a, b):
            ask.emit(Phase(f"finding the cause of worst token {n + 1} of {len(worst)}", n + 1, len(worst)))
            cause = cause_of(a, b, text.chunks[i][:at + 1], ask.cancelled)
            if ask.state is not None:
                ask.state.write_cause(position, cause)
        mine[n] = cause
    causes = ask.ranks.share(mine)
    return tuple(WorstToken(int(starts[i]) + at, text.chunks[i][at], a.tokenizer.token_text(text.chunks[i][at]), kl,
                            causes[n]) for n, (kl, i, at) in enumerate(worst))


def can_graft(a: Side, b: Side) -> bool:
    """Whether the sides have the same layers, so that a value of one fits into the other."""
    return [layer.nodes.keys() for layer in a.model.arch.layers] == [
        layer.nodes.keys() for layer in b.model.arch.layers] and a.model.arch.d_model == b.model.arch.d_model


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """A folder with each measured chunk's numbers and each found cause, begun by a mark of all that they depend on.

    A file is what it keeps behind its sha256: what is torn or was changed is measured again.
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
            # a run that was killed as it began has left a part of its mark
            if not mark.is_file() and not all(is_rest_name(path.name) for path in folder.iterdir()):
                raise UsageError(f"{folder} exists and holds no state of kl. Give another --out.")
            with atomic_file(mark) as part:
                part.write_text(key, encoding="ascii")
        except OSError as error:
            raise OutputError(f"{folder} could not be written: {os_reason(error)}. Give another --out.") from error
        return ChunkStore(folder)

    def read(self, index: int, n_token: int) -> TokenKl | None:
        """A chunk's numbers; None where they are not there, or not as they were written."""
        numbers = self._read(f"{index}.f64", 8 * len(COLUMNS) * n_token)
        if numbers is None or len(numbers) != 8 * len(COLUMNS) * n_token:
            return None
        return TokenKl(*np.frombuffer(numbers, dtype="<f8").reshape(len(COLUMNS), n_token))

    def write(self, index: int, found: TokenKl) -> None:
        """Keep a chunk's numbers, whole or not at all; OutputError."""
        self._write(f"{index}.f64", np.stack([np.asarray(getattr(found, name), dtype="<f8") for name in COLUMNS]
                                             ).tobytes())

    def read_cause(self, position: int) -> Cause | None:
        """Why the token at a position of the text went wrong, where that was found."""
        told = self._read(f"{position}.cause", CAUSE_BYTES)
        return None if told is None else cause_from(json.loads(told))

    def write_cause(self, position: int, cause: Cause) -> None:
        """Keep why a token went wrong; OutputError."""
        self._write(f"{position}.cause", json.dumps(cause_to(cause)).encode())

    def _read(self, name: str, most: int) -> bytes | None:
        try:
            data = read_file(self.folder / name, DIGEST + most, "")
        except FileError:
            return None
        told, kept = data[:DIGEST], data[DIGEST:]
        return kept if hashlib.sha256(kept).digest() == told else None

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        try:
            with atomic_file(path) as part:
                part.write_bytes(hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise OutputError(f"{path} could not be written: {os_reason(error)}. Free some space; the same command "
                              "goes on from what is there.") from error
