"""How a text is cut before a byte-level BPE merges: a row for each way, under its names in tokenizer.ggml.pre.

Nothing is cut here: bpe.py does. A family with a new cut needs a row here and nothing else. Where llama.cpp's own
splitter knows less than the published pattern (upper and lower case beyond ASCII), the published one stands here.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.formats.architectures import ARCHS

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TIKTOKEN = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_KANA_HAN = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_WORDS_MARKS = (r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                r" ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL)
_HAN_HANGUL = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_CASED = (  # letters with a case, as DeepSeek's tokenizer.json lists them
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}"
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}"
    r"\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}"
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}")
_SCRIPTS = (  # written without spaces; Arcee's tokenizer.json
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+")
_DIGITS_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))"
_FALCON_MARKS, _BLOOM = r"[\p{P}\$\+<=>\^~\|`]+", r" ?[^(\s|.,!?…。，、।۔،)]+"


def _o200k(end: str, digits: str, after: str = "/", but: str = "") -> str:
    """The cut of GPT-4o. end: what may end a word; digits: how many stay together; after: what may follow marks."""
    upper, lower, first = f"[{_UPPER}{but}]", f"[{_LOWER}{but}]", r"[^\r\n\p{L}\p{N}]?"
    words = f"{first}{upper}*{lower}+{end}|{first}{upper}+{lower}*{end}"
    return rf"{words}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{after}]*|" + _TAIL


@dataclass(frozen=True, slots=True)
class Pre:
    """How a text is cut before the merges: each pattern cuts what the one before it left.

    whole_words: a piece that is a token is taken as it is, whatever the merges say.
    """

    names: tuple[str, ...]  # of tokenizer.ggml.pre
    patterns: tuple[str, ...]
    add_bos: bool = False   # where the file does not say
    whole_words: bool = False


_HAN = r"&&[^\p{Han}]"
PRES = (  # Source: the tokenizer.json (Kimi: tokenization_kimi.py) published with each family; names: llama-vocab.cpp
    Pre(("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "trillion", "roberta-bpe", "modern-bert", "gigachat",
         "granite-docling", "a.x-4.0", "mellum"), (_GPT2,)),
    Pre(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_TIKTOKEN % "{1,3}",), add_bos=True, whole_words=True),
    Pre(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        (_TIKTOKEN % "",)),
    Pre(("smaug-bpe", "dbrx", "chatglm-bpe"), (_TIKTOKEN % "{1,3}",)),
    Pre(("glm4", "glm5"), (_TIKTOKEN % "{1,3}",), whole_words=True),
    Pre(("qwen35",), ((_TIKTOKEN % "").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}",
                                                                                   r"\s\p{L}\p{M}\p{N}"),)),
    Pre(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)),
    Pre(("tekken",), (_o200k("", ""),), add_bos=True, whole_words=True),
    Pre(("gpt-4o", "llama4", "kanana2", "minimax-m2"), (_o200k(f"{_ENDINGS}?", "{1,3}"),)),
    Pre(("tiny_aya", "cohere2moe"), (r"\p{Nd}{1,3}(?=(?:\p{Nd}{3})*\b)", _o200k(f"{_ENDINGS}?", "{1,3}"))),
    Pre(("kimi-k2",), (r"\p{Han}+|" + _o200k(f"{_ENDINGS}?", "{1,3}", "", _HAN),)),
    Pre(("deepseek-v3", "hunyuan-dense", "joyai-llm"), (r"\p{N}{1,3}", _KANA_HAN, _WORDS_MARKS)),
    Pre(("deepseek-llm",), (r"[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN_HANGUL,
                            r"\p{N}+")),
    Pre(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}")),
    Pre(("afmoe",), (_DIGITS_FROM_RIGHT, _SCRIPTS, _WORDS_MARKS)),
    Pre(("seed-coder",), (_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _TAIL,)),
    Pre(("exaone-moe",), (_ENDINGS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
                          r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",)),
    Pre(("bailingmoe", "bailingmoe2"), (_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                                        r"\s*[\r\n]|\s+(?!\S)|\s+",)),
    Pre(("minicpm5",), (r"\p{N}{1,3}", _TIKTOKEN % "+"), whole_words=True),
    Pre(("falcon",), (_FALCON_MARKS, _GPT2, "[0-9][0-9][0-9]")),
    Pre(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    Pre(("viking",), (_BLOOM, r"\p{N}")),
    Pre(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)
PRE_NAMED = {name: pre for pre in PRES for name in pre.names}
# architecture -> what a file without tokenizer.ggml.pre means
OLDER_PRES = {"gpt2": "gpt-2", **{arch: family.pre for arch, family in ARCHS.items() if family.pre is not None}}
