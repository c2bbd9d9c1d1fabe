"""Read the vocabulary in a file's own metadata, each array when it is first asked for. Nothing is encoded here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from core.formats.model_file import ModelFile
from core.system.errors import FileError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type


class Vocabulary:
    """The tokens of one model file; FileError. defaults: ids of special tokens where the file does not say."""

    def __init__(self, model: ModelFile, defaults: Mapping[str, int] | None = None) -> None:
        self.model, self._defaults = model, defaults or {}

    def error(self, reason: str) -> FileError:
        """The error of a vocabulary that cannot encode."""
        return FileError(f"{self.model.path.name} has no usable tokenizer: {reason} Give token ids with --tokens.")

    def flag(self, name: str, default: bool) -> bool:
        """Return a true or false of the file."""
        value = self.model.keys.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self.error(f"tokenizer.ggml.{name} is {value!r}; true or false was needed.")
        return value

    def special(self, kind: str) -> int:
        """Return the id of bos, eos or unknown."""
        key = f"tokenizer.ggml.{kind}_token_id"
        id = self.model.keys.get(key, self._defaults.get(kind))
        if type(id) is not int or not 0 <= id < len(self.texts):
            found = "absent" if id is None else repr(id)
            why = "because the file adds it" if kind in ("bos", "eos") else "for what it cannot spell"
            raise self.error(f"{key} is {found}; an id below {len(self.texts)} was needed, {why}.")
        return id

    def array(self, name: str, count: int | None, allowed: type | tuple[type, ...]) -> list[Any]:
        """Return an array of so many values of that type."""
        found = self.model.key(f"tokenizer.ggml.{name}")
        if not isinstance(found, list) or not all(isinstance(v, allowed) for v in found):
            raise self.error(f"tokenizer.ggml.{name} is missing or holds values of another type.")
        if count is not None and len(found) != count:
            raise self.error(f"tokenizer.ggml.{name} has {len(found)} entries for {count} tokens.")
        return found

    @cached_property
    def texts(self) -> list[str]:
        """Each token's text, as the file writes it."""
        texts = self.array("tokens", None, str)
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise self.error("a token in tokenizer.ggml.tokens is not UTF-8 text.") from None
        return texts

    @cached_property
    def types(self) -> list[int]:
        """Each token's type."""
        if "tokenizer.ggml.token_type" not in self.model.keys:
            return [NORMAL] * len(self.texts)
        return self.array("token_type", len(self.texts), int)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each text."""
        ids = {text: id for id, text in enumerate(self.texts)}
        if len(ids) != len(self.texts):
            for id, text in enumerate(self.texts):
                if ids[text] != id:
                    raise self.error(f"tokens {id} and {ids[text]} are both {text!r}; each needs a text of its own.")
        return ids

    @cached_property
    def scores(self) -> list[float]:
        """Each token's score."""
        scores = self.array("scores", len(self.texts), (float, int))
        if any(score != score for score in scores):
            raise self.error("a score in tokenizer.ggml.scores is NaN.")
        return scores

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs that are joined, the first ones first."""
        merges = []
        for i, text in enumerate(self.array("merges", None, str)):
            at = text.find(" ", 1)  # a first character is part of the left token, even a space
            left, right = text[:at], text[at + 1 :]
            if at < 0 or not (left in self.ids and right in self.ids and left + right in self.ids):
                raise self.error(f"merge {i} is {text!r}; two tokens of the vocabulary that make a third were needed.")
            merges.append((left, right))
        return merges

    @cached_property
    def specials(self) -> list[tuple[str, int]]:
        """Tokens that are found in a text before anything else is, longest first."""
        rows = zip(self.texts, self.types, strict=True)
        found = [(text, id) for id, (text, kind) in enumerate(rows)
                 if kind in (UNKNOWN, CONTROL, USER_DEFINED) and text]
        return sorted(found, key=lambda pair: -len(pair[0].encode()))
