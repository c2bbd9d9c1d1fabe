"""Turn a folder of text into token shards, once: documents found, held-out ones set apart, tokenised into a cache.

The default corpus is the standard library of the running Python. Shards are read by shards.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.system.atomic_folder import new_folder, strange_in
from core.system.errors import FileError, OutputError, UsageError, os_reason
from core.system.limits import TEXT_FILE_BYTES
from core.system.paths import cache_folder, is_own, make_own
from core.system.regular_file import PIECE_BYTES, open_file, read_file
from core.train.data.shards import MANIFEST, Shards, open_shards
from core.train.data.vocabulary import Vocabulary, encoder, padded, read_vocabulary, train_vocabulary, write_vocabulary

SCHEMA = "apr-tui-corpus/1"
SKIPPED_FOLDERS = frozenset(("site-packages", "dist-packages", "__pycache__", "node_modules", ".git", ".venv"))
VAL_SHARE = 50        # one fiftieth of the text is held out
SAMPLE_BYTES = 8 << 20  # of text a vocabulary below LARGE_VOCAB is trained on; a larger one reads all
LARGE_VOCAB = 16384
SHARD_TOKENS = 1 << 26
GROUP = 128           # documents encoded at once

OnMessage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Document:
    """One text file. part: None for all of it, else (from, to) in bytes."""

    path: Path
    sha256: str
    n_bytes: int
    part: tuple[int, int] | None = None

    def text(self) -> str:
        """Read it; FileError."""
        raw = self.raw()
        return (raw if self.part is None else raw[slice(*self.part)]).decode(errors="replace")

    def raw(self) -> bytes:
        """Read the bytes of the whole file; FileError, for it may have gone since it was listed."""
        return read_file(self.path, TEXT_FILE_BYTES, "Put it back.")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised text with the vocabulary that made it. vocabulary: None for shards that came without one."""

    shards: Shards
    vocabulary: Vocabulary | None
    notes: tuple[str, ...]


def open_corpus(
    folder: Path | None, given: Vocabulary | None, n_vocab: int, cap_mib: int | None, spare: Path,
    on_message: OnMessage,
) -> Corpus:
    """Open token shards, or tokenise a folder of text into the user's cache (spare, where the cache cannot be written).

    Errors: FileError (no text, a damaged shard), UsageError (a vocabulary that does not fit), OutputError.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    if not root.exists():
        raise FileError(f"--corpus {root} does not exist. Give a folder of text files, or of *.bin token shards.")
    if given is not None:
        padded(given, n_vocab)  # refused before the work where it does not fit
    if root.is_file() or any(root.glob("*.bin")):
        return _published(root, given, n_vocab)
    documents, skipped = find_documents(root)
    if not documents:
        raise FileError(f"--corpus {root} holds no text ({skipped} files are empty or not UTF-8). "
                        "Give a folder of text files.")
    notes = [f"{skipped} files that are not UTF-8 text were left out"] if skipped else []
    chosen = capped(documents, cap_mib)
    if len(chosen) < len(documents):
        notes.append(f"{len(chosen)} of {len(documents)} documents, {cap_mib} MiB: the config reads no more by default")
    key = _key(chosen, given, n_vocab)
    for base in (cache_folder(), spare):
        target = base / f"corpus-{key[:16]}"
        try:
            if not _is_built(target, n_vocab, on_message):
                _build(target, root, chosen, given, n_vocab, on_message)
        except OutputError:
            if base == spare:
                raise
            continue
        break
    return Corpus(open_shards(target, n_vocab), padded(_read_built(target, given), n_vocab), tuple(notes))


def find_documents(root: Path) -> tuple[list[Document], int]:
    """List the text files below a folder, in the order of their hashes (a shuffle without a seed); count the rest."""
    found, skipped = [], 0
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            raw = _text_bytes(Path(folder, name))
            if not raw.strip():
                skipped += 1
                continue
            found.append(Document(Path(folder, name), hashlib.sha256(raw).hexdigest(), len(raw)))
    unique = {document.sha256: document for document in sorted(found, key=lambda d: str(d.path), reverse=True)}
    return sorted(unique.values(), key=lambda d: d.sha256), skipped


def _text_bytes(path: Path) -> bytes:
    """Read a text; nothing of what is no text: it is left at its first zero byte."""
    pieces = list[bytes]()
    try:
        with open_file(path, TEXT_FILE_BYTES, "") as file:
            while piece := file.read(PIECE_BYTES):
                if b"\0" in piece:
                    return b""
                pieces.append(piece)
        raw = b"".join(pieces)
        raw.decode()
    except (FileError, UnicodeDecodeError):
        return b""
    return raw


def capped(documents: Sequence[Document], cap_mib: int | None) -> list[Document]:
    """Take documents from the front until they fill the cap; all without one."""
    out: list[Document] = []
    room = float("inf") if cap_mib is None else cap_mib << 20
    for document in documents:
        if out and document.n_bytes > room:
            break
        room -= document.n_bytes
        out.append(document)
    return out


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return training and held-out documents: a fiftieth of the text, in documents of at most a tenth of it.

    Where every document is larger than that, the end of the last one is held out.
    """
    total = sum(d.n_bytes for d in documents)
    val: list[Document] = []
    for document in documents:
        if sum(d.n_bytes for d in val) >= total / VAL_SHARE:
            break
        if document.n_bytes <= total / 10:
            val.append(document)
    if val:
        held = {d.sha256 for d in val}
        return [d for d in documents if d.sha256 not in held], val
    last = documents[-1]
    at = last.n_bytes - max(1, last.n_bytes // 10)
    at = max(1, last.raw().rfind(b"\n", 0, at) + 1) if last.n_bytes > 1 else at
    head, tail = (Document(last.path, last.sha256, end - start, (start, end))
                  for start, end in ((0, at), (at, last.n_bytes)))
    return [*documents[:-1], head], [tail]


def _published(root: Path, given: Vocabulary | None, n_vocab: int) -> Corpus:
    """Open shards that stand in the folder; a vocabulary beside them is taken where none is given."""
    folder = root.parent if root.is_file() else root
    if given is None and (folder / "vocab.json").is_file():
        given = read_vocabulary(folder)
    shards = open_shards(root, n_vocab)
    made_by = shards.manifest.get("tokenizer_sha256") if shards.manifest.get("schema") == SCHEMA else None
    if given is not None and made_by not in (None, given.sha256):
        raise UsageError(f"{folder} was made with another tokenizer ({str(made_by)[:12]}) than the one that is given "
                         f"({given.sha256[:12]}): its ids would stand for other words. Give the one in {folder}.")
    notes = () if given is not None else ("the shards came without a tokenizer: checkpoints trace with --tokens only",)
    return Corpus(shards, None if given is None else padded(given, n_vocab), notes)


def _is_built(target: Path, n_vocab: int, on_message: OnMessage) -> bool:
    """Whether an earlier run has made the shards; damaged ones are removed, or set aside where others wrote too."""
    if not (target / MANIFEST).is_file():
        return False
    if target.is_relative_to(cache_folder()) and not is_own(target / MANIFEST):
        _set_aside(target)
        return False
    try:
        open_shards(target, n_vocab)
    except FileError as error:
        on_message(f"making shards again, for {error}")
        if strange_in(target) is None:
            shutil.rmtree(target, ignore_errors=True)
        else:
            _set_aside(target)
        return False
    return True


def _set_aside(target: Path) -> None:
    """Put a folder away under another name; OutputError."""
    names = (target.with_name(f"{target.name}.damaged-{i}") for i in range(1, 1 << 20))
    try:
        target.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise OutputError(f"{target} could not be set aside: {os_reason(error)}. Move it away.") from error


def _read_built(folder: Path, given: Vocabulary | None) -> Vocabulary:
    return given if given is not None else read_vocabulary(folder)


def _key(documents: Sequence[Document], given: Vocabulary | None, n_vocab: int) -> str:
    facts = [SCHEMA, given.sha256 if given else f"trained {n_vocab}", *(d.sha256 for d in documents)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _build(
    target: Path, root: Path, documents: Sequence[Document], given: Vocabulary | None, n_vocab: int,
    on_message: OnMessage,
) -> None:
    train, val = split(documents)
    if given is None:
        on_message(f"training a tokenizer of {n_vocab} tokens")
        given = train_vocabulary(_sample(train, None if n_vocab >= LARGE_VOCAB else SAMPLE_BYTES), n_vocab, on_message)
    try:
        make_own(target.parent)
        with new_folder(target, force=True) as part:
            total = sum(d.n_bytes for d in documents)
            rows, done = [], 0
            for name, chosen in (("val", val), ("train", train)):
                rows += _write_part(part, name, chosen, given, on_message, (done, total))
                done += sum(d.n_bytes for d in chosen)
            write_vocabulary(part, given)
            manifest = {
                "schema": SCHEMA, "source": str(root), "documents": len(documents), "text_bytes": total,
                "tokens": sum(int(row["tokens"]) for row in rows), "eos": given.end, "tokenizer_sha256": given.sha256,
                "corpus_sha256": _key(documents, given, n_vocab), "shards": rows,
            }
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target} could not be written: {error.strerror or error}. Free some space.") from error
    except UsageError:  # another process has built it meanwhile
        if not (target / MANIFEST).is_file():
            raise


def _write_part(
    folder: Path, name: str, documents: Sequence[Document], vocabulary: Vocabulary, on_message: OnMessage,
    span: tuple[int, int],
) -> list[dict[str, str | int]]:
    """Write the shards of one part, the end token after each document; say how far it is once a second."""
    encode, (done, total) = encoder(vocabulary), span
    rows: list[dict[str, str | int]] = []
    spoken = time.monotonic()
    for at in range(0, len(documents), GROUP):
        group = documents[at : at + GROUP]
        if not rows or int(rows[-1]["tokens"]) >= SHARD_TOKENS:
            rows.append({"file": f"{name}-{len(rows):05d}.bin", "split": name, "documents": 0, "tokens": 0})
        row = rows[-1]
        with (folder / str(row["file"])).open("ab") as out:
            for ids in encode([d.text() for d in group]):
                out.write(np.asarray([*ids, vocabulary.end], "<u4").tobytes())
                row["tokens"] = int(row["tokens"]) + len(ids) + 1
        row["documents"] = int(row["documents"]) + len(group)
        done += sum(d.n_bytes for d in group)
        if time.monotonic() - spoken > 1:
            on_message(f"tokenising: {done / 1e6:.1f} of {total / 1e6:.1f} MB")
            spoken = time.monotonic()
    return rows


def _sample(documents: Sequence[Document], n_bytes: int | None) -> Iterator[str]:
    """Yield texts up to so many bytes; all of them without a number."""
    room = float("inf") if n_bytes is None else n_bytes
    for document in documents:
        if room <= 0:
            return
        room -= document.n_bytes
        yield document.text()
