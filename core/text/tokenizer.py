"""Turn text into token ids and back by the vocabulary in the file's own metadata. Not the prompt's settings: session.

Opening costs nothing: the vocabulary is parsed when a token's text is first asked for, the merges at the first encode.
Special tokens written in a prompt are special tokens: control, unknown and user-defined ones are found in the text,
longest first, as llama.cpp does with parse_special. No Unicode normalisation, as there. A file without a usable
tokenizer still traces with --tokens: encode raises the reason, token_text gives what text there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from core.formats.model_file import LazyArray, ModelFile
from core.system.errors import AprError, FileError, UsageError
from core.text.bpe import BYTE_LETTERS, LETTER_BYTES, OLDER_PRES, PRE_NAMED, Pre, build_bpe
from core.text.chat_template import render_chat_template
from core.text.sentencepiece import SPACE, spm_ids

FAMILIES = {  # tokenizer.ggml.model -> the arrays it cannot do without
    "gpt2": {"tokens": "STRING", "merges": "STRING"}, "llama": {"tokens": "STRING", "scores": "FLOAT"},
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPM_DEFAULTS = {"bos": 1, "eos": 2}  # ids, where an SPM file does not say


class Tokenizer:
    """The tokenizer of one model file. refusal: why it cannot encode, or None; notes: what it had to assume."""

    def __init__(
        self, model: ModelFile, refusal: str | None = None, pre: Pre | None = None, notes: tuple[str, ...] = (),
    ) -> None:
        self.refusal, self.notes = refusal, notes
        self._model, self._pre = model, pre
        self._family = str(model.keys.get("tokenizer.ggml.model"))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, with BOS and EOS where the file adds them. FileError, UsageError."""
        if self.refusal is not None:
            raise self._error(self.refusal)
        validate_text(text)
        ids = [self._special("bos")] if self._adds_bos() else []
        if self._pre is None:
            self._encode_spm(text, ids)
        else:
            for part in _cut_specials(text, self._specials):
                ids += [part] if isinstance(part, int) else self._encode_bpe(part)
        if self._flag("add_eos_token", False):
            ids.append(self._special("eos"))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Join the texts of tokens; bytes that are no UTF-8 become U+FFFD. The space that SPM puts first stays."""
        return b"".join(self._token_bytes(i) for i in ids).decode(errors="replace")

    def token_text(self, id: int) -> str | None:
        r"""Return one token's text for display, incomplete UTF-8 as \xe2; None where the file has none. Never raises.

        It may hold anything, control codes too: the screen escapes.
        """
        try:
            return self._token_bytes(id).decode(errors="backslashreplace")
        except AprError:
            return None

    def apply_chat_template(self, text: str) -> str:
        """Wrap a user's message as the file's template says, less a BOS that encode will add. UsageError, FileError."""
        if self.refusal is not None:
            raise self._error(self.refusal)
        template = self._model.keys.get("tokenizer.chat_template")
        if not isinstance(template, str) or not template.strip():
            raise UsageError(f"{self._model.path.name} has no tokenizer.chat_template to apply. Leave --chat out.")
        names = {kind: self._special_text(kind) for kind in ("bos", "eos")}
        rendered = render_chat_template(template, text, names["bos"], names["eos"])
        return rendered.removeprefix(names["bos"]) if self._adds_bos() else rendered

    # -- the file's keys

    def _error(self, reason: str) -> FileError:
        return FileError(f"{self._model.path.name} has no usable tokenizer: {reason} Give token ids with --tokens.")

    def _flag(self, name: str, default: bool) -> bool:
        value = self._model.keys.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self._error(f"tokenizer.ggml.{name} is {value!r}; true or false was needed.")
        return value

    def _special(self, kind: str) -> int:
        key = f"tokenizer.ggml.{kind}_token_id"
        id = self._model.keys.get(key, None if self._pre else SPM_DEFAULTS[kind])
        if type(id) is not int or not 0 <= id < len(self._texts):
            found = "absent" if id is None else repr(id)
            raise self._error(f"{key} is {found}; an id below {len(self._texts)} was needed, because the file adds it.")
        return id

    def _special_text(self, kind: str) -> str:
        try:
            return self._texts[self._special(kind)]
        except FileError:
            return ""

    def _adds_bos(self) -> bool:
        return self._flag("add_bos_token", self._pre.add_bos if self._pre else True)

    def _array(self, name: str, count: int | None, allowed: type | tuple[type, ...]) -> list[Any]:
        found = self._model.key(f"tokenizer.ggml.{name}")
        if not isinstance(found, list) or not all(isinstance(v, allowed) for v in found):
            raise self._error(f"tokenizer.ggml.{name} is missing or holds values of another type.")
        if count is not None and len(found) != count:
            raise self._error(f"tokenizer.ggml.{name} has {len(found)} entries for {count} tokens.")
        return found

    @cached_property
    def _texts(self) -> list[str]:
        texts = self._array("tokens", None, str)
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise self._error("a token in tokenizer.ggml.tokens is not UTF-8 text.") from None
        return texts

    @cached_property
    def _types(self) -> list[int]:
        if "tokenizer.ggml.token_type" not in self._model.keys:
            return [NORMAL] * len(self._texts)
        return self._array("token_type", len(self._texts), int)

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = {text: id for id, text in enumerate(self._texts)}
        if len(ids) != len(self._texts):
            for id, text in enumerate(self._texts):
                if ids[text] != id:
                    raise self._error(f"tokens {id} and {ids[text]} are both {text!r}; each needs a text of its own.")
        return ids

    @cached_property
    def _specials(self) -> list[tuple[str, int]]:
        """Tokens that are found in a text before anything else is, longest first."""
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        rows = zip(self._texts, self._types, strict=True)
        found = [(text, id) for id, (text, kind) in enumerate(rows) if kind in kinds and text]
        return sorted(found, key=lambda pair: -len(pair[0].encode()))

    # -- the two families

    @cached_property
    def _bpe(self) -> Callable[[str], list[int]]:
        pre = self._pre
        assert pre is not None
        merges = []
        for i, text in enumerate(self._array("merges", None, str)):
            at = text.find(" ", 1)  # a first character is part of the left token, even a space
            left, right = text[:at], text[at + 1 :]
            if at < 0 or not (left in self._ids and right in self._ids and left + right in self._ids):
                raise self._error(f"merge {i} is {text!r}; two tokens of the vocabulary that make a third were needed.")
            merges.append((left, right))
        return build_bpe(pre, self._ids, merges)

    def _encode_bpe(self, text: str) -> list[int]:
        missing = next((b for b in set(text.encode()) if BYTE_LETTERS[b] not in self._ids), None)
        if missing is not None:
            raise UsageError(
                f"The vocabulary has no token for byte 0x{missing:02X} of {text[:20]!r}. "
                "Change the prompt, or give token ids with --tokens."
            )
        try:
            return self._bpe(text)
        except ValueError as error:
            raise self._error(f"the `tokenizers` library refused it ({error}).") from error

    def _encode_spm(self, text: str, ids: list[int]) -> None:
        scores = self._array("scores", len(self._texts), (float, int))
        if any(score != score for score in scores):
            raise self._error("a score in tokenizer.ggml.scores is NaN.")
        if not any(kind == BYTE for kind in self._types) and not any(len(t) == 1 for t in self._texts):
            raise self._error("its vocabulary has neither byte tokens nor single characters, so it can spell nothing.")
        prefix = SPACE if self._flag("add_space_prefix", True) else ""
        for part in _cut_specials(text, self._specials):
            if isinstance(part, int):
                ids.append(part)
                prefix = SPACE if self._flag("add_space_prefix", True) else ""
            else:
                ids += spm_ids(prefix + part.replace(" ", SPACE), self._ids, scores)
                prefix = ""

    def _token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._texts):
            raise UsageError(f"Token {id} is outside the vocabulary; it has ids 0 to {len(self._texts) - 1}.")
        text, kind = self._texts[id], self._types[id]
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            return text.encode()
        if self._family == "llama":
            byte = _byte_of(text) if kind == BYTE else None
            return text.replace(SPACE, " ").encode() if byte is None else bytes([byte])
        if self._family == "gpt2" and all(letter in LETTER_BYTES for letter in text):
            return bytes(LETTER_BYTES[letter] for letter in text)
        return text.encode()


def open_tokenizer(model: ModelFile) -> Tokenizer:
    """Open the file's tokenizer without parsing it. A file that has none gets a Tokenizer whose refusal says why."""
    family, arch = model.keys.get("tokenizer.ggml.model"), model.keys.get("general.architecture")
    if family is None:
        return Tokenizer(model, "it has no tokenizer.ggml.model.")
    if family not in FAMILIES:
        return Tokenizer(model, f"tokenizer.ggml.model is {family!r}; this build reads {' and '.join(FAMILIES)}.")
    for name, kind in FAMILIES[str(family)].items():
        array = model.keys.get(f"tokenizer.ggml.{name}")
        if isinstance(array, LazyArray):
            usable = array.type.startswith(kind) and (array.count > 0 or name != "tokens")
            said = f"{array.count} x {array.type}"
        else:
            usable, said = False, "absent" if array is None else "no array"
        if not usable:
            return Tokenizer(model, f"tokenizer.ggml.{name} is {said}; an array of {kind} was needed.")
    if family == "llama":
        return Tokenizer(model)
    pre, notes = model.keys.get("tokenizer.ggml.pre"), tuple[str, ...]()
    if pre is None and arch in OLDER_PRES:
        pre = OLDER_PRES[str(arch)]
        notes = (f"tokenizer.ggml.pre is absent; {pre} is taken, as architecture {arch} uses",)
    if pre not in PRE_NAMED:
        found, known = "absent" if pre is None else repr(pre), ", ".join(PRE_NAMED)
        return Tokenizer(model, f"its pre-tokenizer (tokenizer.ggml.pre) is {found}; this build knows {known}.")
    return Tokenizer(model, None, PRE_NAMED[str(pre)], notes)


def validate_text(text: str) -> None:
    """Refuse a prompt that is not UTF-8 text; UsageError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("The prompt is not UTF-8 text. Give it as UTF-8, or give ids with --tokens.") from None


def _cut_specials(text: str, specials: Sequence[tuple[str, int]]) -> list[str | int]:
    """Cut a text at the special tokens in it: pieces of text, and ids."""
    parts: list[str | int] = [text] if text else []
    for special, id in specials:
        if special not in text:
            continue
        cut: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            for i, piece in enumerate(part.split(special)):
                cut += [id] * (i > 0)
                cut += [piece] * bool(piece)
        parts = cut
    return parts


def _byte_of(text: str) -> int | None:
    try:
        return int(text[3:5], 16) if text.startswith("<0x") and text.endswith(">") and len(text) == 6 else None
    except ValueError:
        return None
