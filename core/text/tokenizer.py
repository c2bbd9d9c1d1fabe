"""Turn text into token ids and back by the vocabulary in the file's own metadata. Not the prompt's settings: session.

Opening costs nothing: the vocabulary is parsed when a token's text is first asked for, the merges at the first encode.
Special tokens written in a prompt are special tokens: control, unknown and user-defined ones are found in the text,
longest first, as llama.cpp does with parse_special. No Unicode normalisation, as there. A file without a usable
tokenizer still traces with --tokens: encode raises the reason, token_text gives what text there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from core.formats.model_file import LazyArray, ModelFile
from core.system.errors import AprError, FileError, UsageError
from core.text.bpe import LETTER_BYTES, build_byte_bpe, build_gemma_bpe
from core.text.chat_template import render_chat_template
from core.text.library import no_panic
from core.text.other_encoders import build_rwkv, build_unigram, build_wordpiece, rwkv_bytes
from core.text.pre_tokenizers import OLDER_PRES, PRE_NAMED, PRES, Pre
from core.text.sentencepiece import SPACE, build_spm
from core.text.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

Encode = Callable[[str], list[int]]


def _spaced(text: str, kind: int) -> bytes:
    byte = _byte_of(text) if kind == BYTE else None
    return text.replace(SPACE, " ").encode() if byte is None else bytes([byte])


def _lettered(text: str, kind: int) -> bytes:
    is_bytes = all(letter in LETTER_BYTES for letter in text)
    return bytes(LETTER_BYTES[letter] for letter in text) if is_bytes else text.encode()


@dataclass(frozen=True, slots=True)
class Kind:
    """A tokenizer.ggml.model: the arrays it cannot do without, how it encodes, what stands around a prompt.

    build: None for byte-level BPE, which needs its Pre. spell: the bytes of a token's text and type.
    bos, eos: added where the file does not say. ids: of special tokens, where the file does not say.
    """

    arrays: Mapping[str, str]
    build: Callable[[Vocabulary], Encode] | None
    spell: Callable[[str, int], bytes] = _spaced
    bos: bool = False
    eos: bool = False
    ids: Mapping[str, int] = field(default_factory=dict)


_STRINGS = {"tokens": "STRING"}
_UNREAD = Kind(_STRINGS, None, lambda text, kind: text.encode())  # of a model that this build does not encode
_SPM = {"bos": 1, "eos": 2, "unknown": 0}
FAMILIES = {  # by tokenizer.ggml.model; ids and defaults: llama-vocab.cpp
    "gpt2": Kind({**_STRINGS, "merges": "STRING"}, None, _lettered),
    "llama": Kind({**_STRINGS, "scores": "FLOAT"}, build_spm, bos=True, ids=_SPM),
    "gemma4": Kind({**_STRINGS, "merges": "STRING"}, build_gemma_bpe, bos=True, ids={"bos": 2, "eos": 1, "unknown": 3}),
    "t5": Kind({**_STRINGS, "scores": "FLOAT"}, build_unigram, eos=True, ids={"eos": 1, "unknown": 2}),
    "bert": Kind(_STRINGS, build_wordpiece, bos=True, eos=True, ids={"bos": 101, "eos": 102, "unknown": 100}),
    "rwkv": Kind(_STRINGS, build_rwkv, lambda text, kind: rwkv_bytes(text)),
}


class Tokenizer:
    """The tokenizer of one model file. refusal: why it cannot encode, or None; notes: what it had to assume."""

    def __init__(
        self, model: ModelFile, refusal: str | None = None, pre: Pre | None = None, notes: tuple[str, ...] = (),
    ) -> None:
        self.refusal, self.notes = refusal, notes
        self._model, self._pre = model, pre
        self._kind = FAMILIES.get(str(model.keys.get("tokenizer.ggml.model")), _UNREAD)
        self._words = Vocabulary(model, self._kind.ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, with BOS and EOS where the file adds them. FileError, UsageError."""
        if self.refusal is not None:
            raise self._words.error(self.refusal)
        validate_text(text)
        ids = [self._words.special("bos")] if self._adds_bos() else []
        for part in _cut_specials(text, self._words.specials):
            ids += [part] if isinstance(part, int) else self._encode_part(part)
        if self._words.flag("add_eos_token", self._kind.eos):
            ids.append(self._words.special("eos"))
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
            raise self._words.error(self.refusal)
        template = self._model.keys.get("tokenizer.chat_template")
        if not isinstance(template, str) or not template.strip():
            raise UsageError(f"{self._model.path.name} has no tokenizer.chat_template to apply. Leave --chat out.")
        names = {kind: self._special_text(kind) for kind in ("bos", "eos")}
        rendered = render_chat_template(template, text, names["bos"], names["eos"])
        return rendered.removeprefix(names["bos"]) if self._adds_bos() else rendered

    def _encode_part(self, text: str) -> list[int]:
        try:
            with no_panic():
                return self._encode(text)
        except ValueError as error:
            raise self._words.error(f"the `tokenizers` library refused it ({error}).") from error

    @cached_property
    def _encode(self) -> Encode:
        if self._kind.build is not None:
            return self._kind.build(self._words)
        assert self._pre is not None
        return build_byte_bpe(self._words, self._pre)

    def _special_text(self, kind: str) -> str:
        try:
            return self._words.texts[self._words.special(kind)]
        except FileError:
            return ""

    def _adds_bos(self) -> bool:
        return self._words.flag("add_bos_token", self._pre.add_bos if self._pre else self._kind.bos)

    def _token_bytes(self, id: int) -> bytes:
        texts = self._words.texts
        if not 0 <= id < len(texts):
            raise UsageError(f"Token {id} is outside the vocabulary; it has ids 0 to {len(texts) - 1}.")
        text, kind = texts[id], self._words.types[id]
        return text.encode() if kind in (UNKNOWN, CONTROL, USER_DEFINED) else self._kind.spell(text, kind)


def open_tokenizer(model: ModelFile) -> Tokenizer:
    """Open the file's tokenizer without parsing it. A file that has none gets a Tokenizer whose refusal says why."""
    family, arch = model.keys.get("tokenizer.ggml.model"), model.keys.get("general.architecture")
    if family is None:
        return Tokenizer(model, "it has no tokenizer.ggml.model.")
    if family not in FAMILIES:
        return Tokenizer(model, f"tokenizer.ggml.model is {family!r}; this build reads {', '.join(FAMILIES)}.")
    for name, kind in FAMILIES[str(family)].arrays.items():
        array = model.keys.get(f"tokenizer.ggml.{name}")
        if isinstance(array, LazyArray):
            usable = array.type.startswith(kind) and (array.count > 0 or name != "tokens")
            said = f"{array.count} x {array.type}"
        else:
            usable, said = False, "absent" if array is None else "no array"
        if not usable:
            return Tokenizer(model, f"tokenizer.ggml.{name} is {said}; an array of {kind} was needed.")
    if FAMILIES[str(family)].build is not None:
        return Tokenizer(model)
    pre, notes = model.keys.get("tokenizer.ggml.pre"), tuple[str, ...]()
    if pre is None and arch in OLDER_PRES:
        pre = OLDER_PRES[str(arch)]
        notes = (f"tokenizer.ggml.pre is absent; {pre} is taken, as architecture {arch} uses",)
    if pre not in PRE_NAMED:
        found, known = "absent" if pre is None else repr(pre), ", ".join(row.names[0] for row in PRES)
        return Tokenizer(model, f"its pre-tokenizer (tokenizer.ggml.pre) is {found}; this build knows {known} "
                                "and their other names.")
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
