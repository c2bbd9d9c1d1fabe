"""The text that a file's damage is measured on: the project's own, or a user's, as chunks of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.system import limits
from core.system.errors import UsageError
from core.system.regular_file import read_text
from core.text.tokenizer import Tokenizer

OWN = Path(__file__).parent / "corpus.txt"
LEAST = 2  # tokens of a chunk: one has a next token to predict


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as token ids, cut into chunks; name: how it is told to a person."""

    name: str
    chunks: tuple[tuple[int, ...], ...]

    @property
    def n_token(self) -> int:
        """Tokens in all chunks."""
        return sum(map(len, self.chunks))

    def halves(self, most: int) -> tuple[Corpus, Corpus]:
        """The first half of the tokens, at most so many, and as many of what follows: for a bill, and held out."""
        flat = [i for chunk in self.chunks for i in chunk]
        n = min(most, len(flat) // 2)
        if n < LEAST:
            raise UsageError(f"{self.name} has {len(flat)} tokens; {2 * LEAST} are needed, half of them held out.")
        size = max(map(len, self.chunks))
        return Corpus(f"first {n} tokens of {self.name}", cut(flat[:n], size)), Corpus(
            f"the next {n} tokens of {self.name}", cut(flat[n:2 * n], size))


def read_corpus(path: Path | None, tokenizer: Tokenizer, context: int, most: int | None = None) -> Corpus:
    """Read a text (None: the project's own) as chunks of at most context tokens, most tokens in all.

    Errors: FileError where it is no UTF-8 text of a regular file, UsageError where it is too short.
    """
    source = OWN if path is None else path
    text = read_text(source, limits.CORPUS_BYTES, "--corpus takes a UTF-8 text file, or a part of one.")
    ids = tokenizer.encode(text)[:most]
    chunks = cut(ids, context)
    if not chunks:
        raise UsageError(f"--corpus {source} has {len(ids)} tokens; {LEAST} are needed.")
    return Corpus("the text of apr-tui" if path is None else path.name, chunks)


def cut(ids: list[int], context: int) -> tuple[tuple[int, ...], ...]:
    """Cut token ids into chunks of at most context; a rest of one token has nothing to predict and falls away."""
    chunks = (tuple(ids[at:at + context]) for at in range(0, len(ids), context))
    return tuple(chunk for chunk in chunks if len(chunk) >= LEAST)
