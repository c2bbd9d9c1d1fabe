"""Give a training run its byte-level BPE: read vocab.json and merges.txt, take a model file's, or train one on texts.

A Vocabulary goes into the checkpoint's metadata, so that a checkpoint encodes text by itself. Special tokens written in
a corpus are plain text. No Unicode normalisation: a GGUF has no key that would say so.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.formats.model_file import LazyArray, ModelFile, Value
from core.system.cancel import wait_for
from core.system.errors import FileError, UsageError
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES
from core.system.regular_file import read_text
from core.text.bpe import BYTE_LETTERS
from core.text.library import no_panic
from core.text.pre_tokenizers import PRE_NAMED

END = "<|endoftext|>"
ENDS = (END, "<|eos|>", "</s>", "<|im_end|>")  # what a given vocabulary may call the end of a document
PRE = "gpt-2"
_NEEDED = "A folder with vocab.json and merges.txt is needed."
TOLD_S = 1.0  # between two messages on how long training takes: a run may be ended at each
NORMAL, CONTROL, UNUSED = 1, 3, 5  # tokenizer.ggml.token_type


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE. tokens by id; merges as "left right"; end: the id between documents; pre: how text is cut."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    end: int
    pre: str = PRE
    specials: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """Identity of the vocabulary."""
        text = json.dumps([self.tokens, self.merges, self.end, self.pre], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read vocab.json and merges.txt; FileError, UsageError (no token that could end a document)."""
    try:
        ids: Any = from_json(read_text(folder / "vocab.json", DOCUMENT_BYTES, _NEEDED), "vocab.json", _NEEDED)
        lines = read_text(folder / "merges.txt", DOCUMENT_BYTES, _NEEDED).split("\n")
    except FileError as error:
        raise FileError(f"--tokenizer {folder}: {error}") from error
    if not isinstance(ids, dict):
        raise FileError(f"{folder / 'vocab.json'} is a {type(ids).__name__}; an object was needed. {_NEEDED}")
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise FileError(f"{folder / 'vocab.json'} does not map {len(ids)} tokens to the ids 0 to {len(ids) - 1}.")
    tokens = tuple(sorted(ids, key=lambda token: int(ids[token])))
    merges = tuple(line for line in lines if line and not line.startswith("#version"))
    for line in merges:
        left, _, right = line.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise FileError(f"{folder / 'merges.txt'}: {line!r} is no merge of two tokens of vocab.json into a third.")
    missing = [letter for letter in BYTE_LETTERS if letter not in ids]
    if missing:
        raise FileError(f"{folder / 'vocab.json'} has no token for {len(missing)} of the 256 bytes: no byte-level BPE.")
    end = next((ids[name] for name in ENDS if name in ids), None)
    if end is None:
        raise UsageError(f"--tokenizer {folder} has none of {', '.join(ENDS)}; one is needed between documents.")
    specials = tuple(i for i, token in enumerate(tokens) if token.startswith("<|") and token.endswith("|>"))
    return Vocabulary(tokens, merges, end, specials=tuple(sorted({*specials, end})))


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write vocab.json and merges.txt."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=True), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(f"{m}\n" for m in vocabulary.merges), encoding="utf-8")


def train_vocabulary(
    texts: Iterable[str], n_vocab: int, on_message: Callable[[str], None] = lambda text: None
) -> Vocabulary:
    """Train a byte-level BPE of at most n_vocab tokens: 256 bytes, merges by frequency, the end token last.

    on_message: called every second with how long it has taken; what it raises ends the wait, and the work ends with
    the process.
    """
    from tokenizers import Tokenizer, models, trainers

    if n_vocab < 257:
        raise UsageError(f"n_vocab {n_vocab}: 257 at least is needed, for the 256 bytes and {END}.")
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = _cutter(PRE)
    trainer = trainers.BpeTrainer(vocab_size=n_vocab - 1, initial_alphabet=BYTE_LETTERS, show_progress=False)
    failed: list[Exception] = []

    def work() -> None:
        try:
            engine.train_from_iterator(texts, trainer)
        except Exception as error:  # noqa: BLE001 (raised again where it is waited for)
            failed.append(error)

    thread = threading.Thread(target=work, name="tokenizer", daemon=True)
    thread.start()
    began = time.monotonic()
    thread.join(TOLD_S)
    while thread.is_alive():
        on_message(f"training a tokenizer of {n_vocab} tokens: {time.monotonic() - began:.0f} s")
        thread.join(TOLD_S)
    if failed:
        raise failed[0]
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda token: int(model["vocab"][token]))
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary((*tokens, END), merges, len(tokens), specials=(len(tokens),))


def file_vocabulary(model: ModelFile) -> Vocabulary:
    """Take the vocabulary of a model file; UsageError where it is not a byte-level BPE with an end token."""
    tokens, merges = model.key("tokenizer.ggml.tokens"), model.key("tokenizer.ggml.merges")
    pre, end = model.key("tokenizer.ggml.pre"), model.key("tokenizer.ggml.eos_token_id")
    usable = model.key("tokenizer.ggml.model") == "gpt2" and isinstance(pre, str) and pre in PRE_NAMED
    texts = all(isinstance(items, list) and all(isinstance(i, str) for i in items) for items in (tokens, merges))
    if not usable or not texts or type(end) is not int or not 0 <= end < len(tokens):
        raise UsageError(f"{model.path.name} holds no byte-level BPE with an end token that this build reads. "
                         "Give one with --tokenizer DIR (vocab.json, merges.txt).")
    types = model.key("tokenizer.ggml.token_type")
    specials = tuple(i for i, t in enumerate(types) if t == CONTROL) if isinstance(types, list) else ()
    return Vocabulary(tuple(tokens), tuple(merges), end, pre, specials)


def padded(vocabulary: Vocabulary, n_vocab: int) -> Vocabulary:
    """Fill up to n_vocab with unused tokens; UsageError where the vocabulary is larger than the model's."""
    found = len(vocabulary.tokens)
    if found > n_vocab:
        raise UsageError(f"the tokenizer has {found} tokens, the model a vocabulary of {n_vocab}. "
                         f"Give a --config with n_vocab {found}, or another --tokenizer.")
    return replace(vocabulary, tokens=(*vocabulary.tokens, *(f"<|unused_{i}|>" for i in range(found, n_vocab))))


def encoder(vocabulary: Vocabulary) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function from texts to ids, on all cores."""
    from tokenizers import Tokenizer, models

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    engine = Tokenizer(models.BPE(ids, merges, ignore_merges=PRE_NAMED[vocabulary.pre].whole_words))
    engine.pre_tokenizer = _cutter(vocabulary.pre)


    def encode(texts: Sequence[str]) -> list[list[int]]:
        try:
            with no_panic():
                found = wait_for(lambda: engine.encode_batch_fast(list(texts), add_special_tokens=False))
                return [list(e.ids) for e in found]
        except ValueError as error:
            raise FileError(f"the tokenizer cannot encode the text ({error}). {_NEEDED}") from error

    return encode


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """Return the metadata that a model file carries for it."""
    specials = set(vocabulary.specials)
    types = [CONTROL if i in specials else UNUSED if token.startswith("<|unused_") else NORMAL
             for i, token in enumerate(vocabulary.tokens)]
    lists = (("tokens", "STRING", list(vocabulary.tokens)), ("token_type", "INT32", types),
             ("merges", "STRING", list(vocabulary.merges)))
    keys: dict[str, Value] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": vocabulary.pre}
    for name, kind, items in lists:
        keys[f"tokenizer.ggml.{name}"] = LazyArray(kind, len(items), lambda items=items: items)  # type: ignore[misc]
    return keys | {"tokenizer.ggml.bos_token_id": vocabulary.end, "tokenizer.ggml.eos_token_id": vocabulary.end,
                   "tokenizer.ggml.add_bos_token": False}


def _cutter(pre: str) -> Any:  # noqa: ANN401 (tokenizers has no types)
    """Cut a text as core.bpe does for a traced file, so that both give the same ids."""
    from tokenizers import Regex, pre_tokenizers

    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_NAMED[pre].patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
