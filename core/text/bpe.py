"""Cut a text and merge its bytes into the tokens of a byte-level BPE (tokenizer.ggml.model "gpt2"), or Gemma 4's.

The work is the `tokenizers` library's, imported when a tokenizer is built (half a second for 151,387 merges).
"""

from __future__ import annotations

from collections.abc import Callable

from core.system.errors import UsageError
from core.text.library import encode_text
from core.text.pre_tokenizers import Pre
from core.text.sentencepiece import SPACE
from core.text.vocabulary import Vocabulary


def build_bpe(pre: Pre, ids: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """Return a function from text without special tokens to ids. ValueError, where the library refuses."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.BPE(ids, merges, ignore_merges=pre.whole_words))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    return lambda text: encode_text(engine, text)


def build_byte_bpe(words: Vocabulary, pre: Pre) -> Callable[[str], list[int]]:
    """Return the encoder of a file. FileError, ValueError, UsageError: a byte without a token."""
    encode_checked: Callable[[str], list[int]] | None = None

    def encode(text: str) -> list[int]:
        nonlocal encode_checked
        missing = next((b for b in set(text.encode()) if BYTE_LETTERS[b] not in words.ids), None)
        if missing is not None:
            raise UsageError(
                f"The vocabulary has no token for byte 0x{missing:02X} of {text[:20]!r}. "
                "Change the prompt, or give token ids with --tokens."
            )
        encode_checked = encode_checked or build_bpe(pre, words.ids, words.merges)
        return encode_checked(text)

    return encode


def build_gemma_bpe(words: Vocabulary) -> Callable[[str], list[int]]:
    """Gemma 4: merges of characters, not bytes, spaces written U+2581; runs of newlines stay apart. ValueError."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.BPE(words.ids, words.merges, byte_fallback=True, unk_token=None))
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|[^\n]+"), "isolated")
    prefix = SPACE if words.flag("add_space_prefix", False) else ""
    return lambda text: encode_text(engine, prefix + text.replace(" ", SPACE))


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes: printable ones for themselves, others from U+0100. Source: GPT-2."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
