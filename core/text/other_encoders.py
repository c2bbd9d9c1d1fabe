"""Encoders of few models: Unigram (tokenizer.ggml.model "t5"), WordPiece ("bert") and RWKV's longest match ("rwkv").

Each build_* returns a function from text without special tokens to ids. BPE and SPM: bpe.py, sentencepiece.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from core.system.errors import UsageError
from core.text.library import encode_text
from core.text.sentencepiece import SPACE
from core.text.vocabulary import NORMAL, Vocabulary

Encode = Callable[[str], list[int]]
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r"}


def build_unigram(words: Vocabulary) -> Encode:
    """The path of tokens with the largest sum of scores; what no token spells is unknown. Source: SentencePiece."""
    from tokenizers import Tokenizer, models, normalizers

    unknown = words.special("unknown")
    engine = Tokenizer(models.Unigram([*zip(words.texts, words.scores, strict=True)], unknown, False))
    rules = words.model.key("tokenizer.ggml.precompiled_charsmap")
    if isinstance(rules, list) and rules:
        engine.normalizer = normalizers.Precompiled(bytes(value & 255 for value in rules))
    is_trimmed = words.flag("remove_extra_whitespaces", False)
    prefix = SPACE if words.flag("add_space_prefix", False) else ""

    def encode(text: str) -> list[int]:
        text = text if engine.normalizer is None else engine.normalizer.normalize_str(text)
        text = re.sub(" +", " ", text.strip(" ")) if is_trimmed else text
        return encode_text(engine, prefix + text.replace(" ", SPACE)) if text else []

    return encode


def build_wordpiece(words: Vocabulary) -> Encode:
    """Lower-case words without accents, each cut into its longest beginnings. Source: BERT.

    The file marks beginnings of words by a space (U+2581), where the library marks what goes on.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    ids = {}
    for text, kind, id in zip(words.texts, words.types, range(len(words.texts)), strict=True):
        if kind == NORMAL:
            text = text.removeprefix(SPACE) if text.startswith(SPACE) else f"##{text}"
        ids[text] = id
    unknown = words.texts[words.special("unknown")]
    engine = Tokenizer(models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=1 << 20))
    engine.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return lambda text: encode_text(engine, text)


def build_rwkv(words: Vocabulary) -> Encode:
    """The longest token that the bytes begin with, again and again. Source: RWKV's World tokenizer."""
    ids = {rwkv_bytes(text): id for id, text in enumerate(words.texts) if words.types[id] == NORMAL}
    longest = max(map(len, ids), default=0)

    def encode(text: str) -> list[int]:
        raw, at, out = text.encode(), 0, []
        while at < len(raw):
            size = next((n for n in range(min(longest, len(raw) - at), 0, -1) if raw[at:at + n] in ids), 0)
            if not size:
                raise UsageError(f"The vocabulary has no token for byte 0x{raw[at]:02X}. "
                                 "Change the prompt, or give token ids with --tokens.")
            out.append(ids[raw[at:at + size]])
            at += size
        return out

    return encode


def rwkv_bytes(text: str) -> bytes:
    r"""The bytes of a token that is written as Python writes bytes: \xe4, \n, \\."""
    out, at = b"", 0
    for found in _ESCAPE.finditer(text):
        byte, letter = found.groups()
        out += text[at:found.start()].encode()
        out += bytes([int(byte, 16)]) if byte else _ESCAPED.get(letter, letter).encode()
        at = found.end()
    return out + text[at:].encode()
