"""Cut a text and merge its bytes into the tokens of a byte-level BPE (tokenizer.ggml.model "gpt2"). Knows no file.

The work is the `tokenizers` library's, imported when a tokenizer is built (half a second for 151,387 merges).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.formats.architectures import ARCHS

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Pre:
    """How a text is cut before the merges: each pattern cuts what the one before it left.

    whole_words: a piece that is a token is taken as it is, whatever the merges say.
    """

    names: tuple[str, ...]  # of tokenizer.ggml.pre
    patterns: tuple[str, ...]
    add_bos: bool = False   # where the file does not say
    whole_words: bool = False


PRES = (  # Source: the tokenizer.json published with each family; the names: llama.cpp, llama-vocab.cpp
    Pre(("gpt-2",), (_GPT2,)),
    Pre(("llama-bpe", "llama3", "llama-v3", "falcon3"), (_TIKTOKEN % "{1,3}",), add_bos=True, whole_words=True),
    Pre(("qwen2", "deepseek-r1-qwen"), (_TIKTOKEN % "",)),
    Pre(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
)
PRE_NAMED = {name: pre for pre in PRES for name in pre.names}
# architecture -> what a file without tokenizer.ggml.pre means; gpt2 is encoded and not run, so it has no row of its own
OLDER_PRES = {"gpt2": "gpt-2", **{arch: family.pre for arch, family in ARCHS.items() if family.pre is not None}}


def build_bpe(pre: Pre, ids: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """Return a function from text without special tokens to ids. ValueError, where the library refuses."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.BPE(ids, merges, ignore_merges=pre.whole_words))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    return lambda text: list(engine.encode(text, add_special_tokens=False).ids)


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes: printable ones for themselves, others from U+0100. Source: GPT-2."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
