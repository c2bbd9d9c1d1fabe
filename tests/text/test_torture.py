"""Every tokenizer kind against llama.cpp's and the `tokenizers` library's own on a text that has everything in it.

The vocabularies are made here, with merges across every boundary, so that each cut of a pre-tokenizer shows in the ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.formats.gguf_reader import read_gguf
from core.text.bpe import BYTE_LETTERS
from core.text.pre_tokenizers import PRES
from core.text.tokenizer import Tokenizer, open_tokenizer

TORTURE = (
    "Hello world, it's 2026! We'll don't I'M HE'LL x'LLy THEY'RE <|end|>hi<|end|>",
    "def f(x):\n    return x**2 + 10_000  # comment\n\n\n\tif a != b: pass\r\n\r\nend",
    "  two  spaces   three    four \t\t tabs \n \n  lines  \n\n\n   tail   ",
    "1234567890 12 1 123456 3.14159 1,234,567 0x1F \u0661\u0662\u0663\u0664 \u00b2\u00b3 \u216b \u00bd word1word 1a2",
    "日本語のテキストと漢字、かな、カナ。 中文字符测试 한국어 텍스트 ไทย ພາສາ",
    "🦙🦙 emoji 👩\u200d👩\u200d👧 🇩🇪 naïve café Привет МИР αβγ ΑΒΓ ა العربية שלום",
    "\x01\x7f\u200b\u200d\u00a0 zero width\ufeff",
    "!?.,;:--- ...\n\n??!\n//path/to/file /a/b\n## x ``` \"q\" 'q' “q” ‘q’ — … €$£ <a href='x'>^~|`@#%&*()[]{}\\_",
    "(hello) [x] -a -1 +1 =b _c .d .5 $x", "   ", "\n", "", " a", "a ",
)
MARKS = ("नमस्ते दुनिया cafe\u0301 a\u0300\u0301b ខ្មែរ မြန်မာ", "ÉCOLE École ǅ Ა", "f\u2028g\u2003h",
         "CamelCaseWord HTTPServer iPhone aB ABc ABC's ABC'S")
# llama.cpp's own splitter takes marks for no letters, knows case in ASCII alone, and cuts U+2028 otherwise
SHORT_OF_MARKS = ("tekken", "gpt-4o", "tiny_aya", "kimi-k2", "deepseek-llm", "deepseek-coder")
PRE_OF = {pre.names[0]: pre for pre in PRES}
SPACE = "\u2581"


@pytest.fixture(scope="module")
def merged() -> tuple[list[str], list[str]]:
    """Texts and merges of a BPE that was trained without cuts."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, trainers

    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=6000, min_frequency=1, initial_alphabet=BYTE_LETTERS, show_progress=False)
    engine.train_from_iterator(_windows(), trainer)
    return _vocabulary(engine)


def _windows() -> list[str]:
    return [text[i:i + n] for text in TORTURE + MARKS for n in (2, 3, 4, 5) for i in range(len(text) - n + 1)]


def _vocabulary(engine) -> tuple[list[str], list[str]]:
    found = json.loads(engine.to_str())["model"]
    return sorted(found["vocab"], key=found["vocab"].get), [" ".join(pair) for pair in found["merges"]]


def write_vocabulary(
    path: Path, kind: str, texts: list[str], types: list[int], bos: int = 0, eos: int = 0, **keys: object,
) -> Path:
    """Write a vocabulary without a model; byte-level BPE has its special tokens at its end."""
    import gguf

    if kind == "gpt2":
        texts, types, bos, eos = [*texts, "<|bos|>", "<|end|>"], [*types, 3, 3], len(texts), len(texts) + 1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    for name, value in keys.items():
        {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}[type(value)](
            f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_ids(path: Path) -> Callable[[str], list[int]]:
    llama_cpp = pytest.importorskip("llama_cpp")
    other = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: other.tokenize(text.encode(), add_bos=True, special=True)


def opened(path: Path) -> Tokenizer:
    return open_tokenizer(read_gguf(path))


def assert_same(ours: Tokenizer, theirs: Callable[[str], list[int]], texts: tuple[str, ...]) -> None:
    for text in texts:
        got, want = ours.encode(text), theirs(text)
        assert got == want, (text, [ours.token_text(i) for i in got], [ours.token_text(i) for i in want])


@pytest.mark.parametrize("name", PRE_OF)
def test_each_pre_tokenizer_gives_llama_cpps_ids(name, merged, tmp_path):
    texts, merges = merged
    path = write_vocabulary(tmp_path / "v.gguf", "gpt2", texts, [1] * len(texts), pre=name, merges=merges)
    assert_same(opened(path), llama_ids(path), TORTURE if name in SHORT_OF_MARKS else TORTURE + MARKS)
    assert opened(path).decode(opened(path).encode(TORTURE[5])).endswith(TORTURE[5])


@pytest.mark.parametrize("name, text, pieces", [
    ("tekken", "ÉCOLE CamelCase नमस्ते a12", ["ÉCOLE", " Camel", "Case", " नमस्ते", " a", "1", "2"]),
    ("gpt-4o", "ÉCOLE's CamelCase नमस्ते a1234", ["ÉCOLE's", " Camel", "Case", " नमस्ते", " a", "123", "4"]),
    ("kimi-k2", "HTTPServer漢字 iPhone नमस्ते/\n", ["HTTPServer", "漢字", " i", "Phone", " नमस्ते", "/\n"]),
    ("tiny_aya", "iPhone 1234567", ["i", "Phone", " ", "1", "234", "567"]),
    ("deepseek-llm", "f\u2028g 12", ["f", "\u2028", "g", " ", "12"]),
    ("deepseek-coder", "f\u2028g!! 12", ["f", "\u2028", "g", "!!", " ", "1", "2"]),
])
def test_where_llama_cpp_falls_short_the_published_pattern_is_followed(name, text, pieces):
    """By Python's own regex engine, pattern after pattern; and the pieces by hand."""
    regex = pytest.importorskip("regex")
    found = [text]
    for pattern in PRE_OF[name].patterns:
        pattern = regex.sub(r"\\x\{([0-9A-F]+)\}", lambda m: chr(int(m[1], 16)), pattern)
        found = [part for whole in found for part in regex.splititer(rf"(?V1)({pattern})", whole) if part]
    assert found == pieces


def test_gemma_4_merges_characters_and_spells_the_rest_in_bytes(tmp_path):
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, trainers

    engine = Engine(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=2, limit_alphabet=120, show_progress=False)
    engine.train_from_iterator([w.replace(" ", SPACE) for w in _windows()], trainer)
    texts, merges = _vocabulary(engine)
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *texts]
    path = write_vocabulary(tmp_path / "v.gguf", "gemma4", texts, [3, 3, 3, 2, *[6] * 256, *[1] * (len(texts) - 260)],
                            merges=merges, bos=2)
    assert_same(opened(path), llama_ids(path), TORTURE + MARKS)


def test_unigram_takes_the_best_path_as_llama_cpp_does(tmp_path):
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, trainers

    engine = Engine(models.Unigram())
    trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    engine.train_from_iterator([w.replace(" ", SPACE) for w in _windows()], trainer)
    rows = json.loads(engine.to_str())["model"]["vocab"][1:]
    texts = ["<pad>", "</s>", "<unk>", *(text for text, _ in rows)]
    path = write_vocabulary(tmp_path / "v.gguf", "t5", texts, [3, 3, 2, *[1] * len(rows)], eos=1,
                            scores=[0.0, 0.0, 0.0, *(float(score) for _, score in rows)], unknown_token_id=2)
    assert_same(opened(path), llama_ids(path), TORTURE + MARKS + ("\u0e5b\u0e5b unknown \u0e5b",))


def test_word_piece_cuts_words_as_llama_cpp_does(tmp_path):
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"{space}{c}" for c in _letters() for space in ("", SPACE)),
             f"{SPACE}hello", f"{SPACE}world", "llo", f"{SPACE}naive", "cafe", f"{SPACE}привет"]
    path = write_vocabulary(tmp_path / "v.gguf", "bert", texts, [3, 1, 3, 3, *[1] * (len(texts) - 4)],
                            bos=2, eos=3, unknown_token_id=1, seperator_token_id=3)
    assert_same(opened(path), llama_ids(path), (
        "Hello, world! it's HELLO cafe\u0301 naïve 漢字 12 Привет", "", " ", "a  b\n\tc"))


def _letters() -> list[str]:
    return sorted({c for c in "abcdefghijklmnopqrstuvwxyz0123456789,!'.漢字приветй"})


def test_rwkv_takes_the_longest_token_as_llama_cpp_does(tmp_path):
    words = sorted({w.encode()[:5] for w in _windows()} - {bytes([b]) for b in range(256)})
    texts = ["<s>", *(repr(bytes([b]))[2:-1] for b in range(256)), *(repr(w)[2:-1] for w in words)]
    path = write_vocabulary(tmp_path / "v.gguf", "rwkv", texts, [3, *[1] * (len(texts) - 1)], bos=0, eos=0)
    assert_same(opened(path), llama_ids(path), TORTURE + MARKS)
    assert opened(path).decode(opened(path).encode(TORTURE[1])) == TORTURE[1]
