"""The tokenizer: published cases, both families by hand, broken vocabularies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.formats.model_file import LazyArray, ModelFile
from core.system.errors import FileError, UsageError
from core.text.bpe import BYTE_LETTERS
from core.text.pre_tokenizers import PRE_NAMED
from core.text.tokenizer import FAMILIES, Tokenizer, open_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data")

MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "12 3", "Ġ Ġ", "Ċ Ċ")
BPE_TEXTS = (*BYTE_LETTERS, *(m.replace(" ", "") for m in MERGES), "whole", "<|bos|>", "<|end|>", "[PAD]")
SPM_BYTES = tuple(f"<0x{b:02X}>" for b in range(256))
SPM_TEXTS = ("<unk>", "<s>", "</s>", *SPM_BYTES, "▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "aa", "<tool>")
SPM_SCORES = dict.fromkeys(SPM_TEXTS, 0.0) | {"ab": -2.0, "bc": -1.0, "abc": -3.0, "▁a": -4.0, "aa": -5.0}


def array(kind: str, values: list | tuple) -> LazyArray:
    return LazyArray(kind, len(values), lambda: list(values))


def model(**changes: object) -> ModelFile:
    keys = {name.replace("__", "."): value for name, value in changes.items() if value is not None}
    prefixed = {k if "." in k else f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    return ModelFile(Path("made.gguf"), "gguf", prefixed, {}, 0, "")


def bpe(**changes: object) -> Tokenizer:
    keys = {
        "model": "gpt2", "pre": "qwen2", "tokens": array("STRING", BPE_TEXTS), "merges": array("STRING", MERGES),
        "token_type": array("INT32", [1] * (len(BPE_TEXTS) - 3) + [3, 3, 4]), "bos_token_id": len(BPE_TEXTS) - 3,
        "eos_token_id": len(BPE_TEXTS) - 2,
    }
    return open_tokenizer(model(**keys | changes))


def spm(**changes: object) -> Tokenizer:
    keys = {
        "model": "llama", "tokens": array("STRING", SPM_TEXTS), "scores": array("FLOAT32", list(SPM_SCORES.values())),
        "token_type": array("INT32", [2, 3, 3] + [6] * 256 + [1] * (len(SPM_TEXTS) - 260) + [4]),
    }
    return open_tokenizer(model(**keys | changes))


def pieces(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text)]


# -- the published cases

@pytest.fixture(scope="module")
def qwen2() -> Tokenizer:
    from core.formats.gguf_reader import read_gguf

    return open_tokenizer(read_gguf(SHARED / "qwen2-vocab.gguf"))


@needs_shared
def test_every_published_qwen2_case_gives_the_published_ids_and_decodes_to_its_text(qwen2):
    texts = (SHARED / "qwen2-vocab.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (SHARED / "qwen2-vocab.out").read_text().split("\n")
    assert len(texts) == len(lines) and len(texts) >= 46
    for text, line in zip(texts, lines, strict=True):
        assert qwen2.encode(text) == [int(id) for id in line.split()], text
        assert qwen2.decode(qwen2.encode(text)) == text


@needs_shared
def test_the_default_prompt_has_the_published_ids(qwen2):
    assert qwen2.encode("What is 2+2?") == [3838, 374, 220, 17, 10, 17, 30]


@needs_shared
def test_the_files_chat_template_is_rendered_and_its_special_tokens_become_single_ids(qwen2):
    prompt = qwen2.apply_chat_template("hi <b>")
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert qwen2.encode(prompt).count(151644) == 3


@needs_shared
def test_a_real_vocabulary_of_placeholders_spells_the_prompt_in_bytes():
    from core.formats.gguf_reader import read_gguf

    tokenizer = open_tokenizer(read_gguf(SHARED / "stories260k.gguf"))
    assert tokenizer.encode("Hi") == [1, *(3 + byte for byte in "▁Hi".encode())]
    assert tokenizer.token_text(259) == "t259"


# -- byte-level BPE

def test_bpe_joins_by_rank_and_keeps_the_space_with_its_word():
    assert pieces(bpe(), "hello world") == ["hello", " world"]


@pytest.mark.parametrize("pre, expected", [
    ("qwen2", ["1", "2", "3", "1", "2"]),      # every digit by itself
    ("smollm", ["1", "2", "3", "1", "2"]),
    ("llama-bpe", ["123", "12"]),              # up to three digits
    ("gpt-2", ["123", "12"]),                  # a whole number
])
def test_each_pre_tokenizer_cuts_numbers_in_its_own_way(pre, expected):
    assert pieces(bpe(pre=pre, add_bos_token=False), "12312") == expected


def test_newlines_stay_with_the_mark_before_them_except_in_gpt_2():
    texts, merges = (*BPE_TEXTS, "?Ċ"), ("? Ċ", *MERGES)
    changed = {"tokens": array("STRING", texts), "merges": array("STRING", merges), "token_type": None}
    assert pieces(bpe(**changed), "?\n") == ["?\n"]
    assert pieces(bpe(**changed, pre="gpt-2"), "?\n") == ["?", "\n"]


def test_only_llama_bpe_takes_a_whole_word_that_no_merge_makes():
    assert pieces(bpe(pre="llama-bpe", add_bos_token=False), "whole") == ["whole"]
    assert pieces(bpe(), "whole") == list("whole")


def test_contractions_are_cut_before_the_letters_in_either_case():
    merges, texts = (*MERGES, "' L", "'L L"), (*BPE_TEXTS, "'L", "'LL")
    changed = {"merges": array("STRING", merges), "tokens": array("STRING", texts), "token_type": None}
    assert pieces(bpe(**changed), "x'LLy") == ["x", "'LL", "y"]
    assert pieces(bpe(**changed, pre="gpt-2"), "x'LLy") == ["x", "'", "L", "L", "y"]  # its pattern has lower case only


def test_bytes_without_a_character_of_their_own_survive_the_round_trip():
    text = "naïve 🦙\t\x00\x7f 日本"
    assert bpe().decode(bpe().encode(text)) == text


def test_a_piece_of_a_character_is_shown_as_its_byte():
    assert pieces(bpe(), "é") == ["\\xc3", "\\xa9"]


def test_bos_follows_the_file_and_else_the_pre_tokenizer():
    bos = len(BPE_TEXTS) - 3
    assert bpe().encode("h") == [BYTE_LETTERS.index("h")]
    assert bpe(add_bos_token=True).encode("h")[0] == bos
    assert bpe(pre="llama-bpe").encode("h")[0] == bos
    assert bpe(pre="llama-bpe", add_bos_token=False).encode("h")[0] != bos
    assert bpe(add_eos_token=True).encode("h")[-1] == bos + 1
    assert bpe(add_bos_token=True).encode("") == [bos]


def test_special_tokens_in_the_text_are_special_tokens_and_their_neighbours_are_text():
    assert pieces(bpe(), "hello<|end|>hello[PAD]") == ["hello", "<|end|>", "hello", "[PAD]"]


def test_the_longest_special_token_wins_wherever_it_stands():
    texts, types = (*BPE_TEXTS, "<|a", "<|a|>", "|>b"), [1] * len(BPE_TEXTS) + [3, 3, 4]
    tokenizer = bpe(tokens=array("STRING", texts), token_type=array("INT32", types))
    assert pieces(tokenizer, "<|a|>b<|a") == ["<|a|>", "b", "<|a"]


def test_an_absent_pre_tokenizer_is_taken_from_the_architecture_and_said():
    tokenizer = bpe(pre=None, general__architecture="qwen2")
    assert pieces(tokenizer, "12") == ["1", "2"]
    assert "qwen2 is taken" in tokenizer.notes[0]


# -- SPM

def test_spm_joins_the_best_scored_pair_first_and_not_the_leftmost():
    assert pieces(spm(add_bos_token=False), "abc") == [" ", "abc"]
    assert pieces(spm(add_bos_token=False), "abb") == [" ", "ab", "b"]
    # bc (-1) is better than ab (-2), so a is left for the space; merging from the left would give "ab", "c"
    no_abc = array("STRING", tuple("?" * 9 if t == "abc" else t for t in SPM_TEXTS))
    assert pieces(spm(add_bos_token=False, tokens=no_abc), "abc") == [" a", "bc"]


def test_spm_takes_the_leftmost_of_equal_pairs():
    assert pieces(spm(add_bos_token=False, add_space_prefix=False), "aaa") == ["aa", "a"]


def test_spm_spells_an_unknown_character_in_bytes_and_joins_them_again():
    tokenizer = spm()
    ids = tokenizer.encode("é")
    assert ids == [1, SPM_TEXTS.index("▁"), 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(ids[1:]) == " é"
    assert tokenizer.token_text(3 + 0x0A) == "\n"


def test_spm_adds_bos_and_the_space_unless_the_file_says_otherwise():
    assert spm().encode("b") == [1, SPM_TEXTS.index("▁"), SPM_TEXTS.index("b")]
    assert spm(add_bos_token=False, add_space_prefix=False).encode("b") == [SPM_TEXTS.index("b")]
    assert spm().encode("") == [1]


def test_spm_puts_its_space_again_after_a_special_token():
    assert pieces(spm(add_bos_token=False), "b<tool>b</s>b") == [" ", "b", "<tool>", " ", "b", "</s>", " ", "b"]


def test_spm_equals_sentencepiece_where_it_is_installed():
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    out, lines = io.BytesIO(), Path(__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        minloglevel=2, num_threads=1,
    )
    judge = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    ids = range(judge.vocab_size())
    kinds = [2 if judge.is_unknown(i) else 3 if judge.is_control(i) else 6 if judge.is_byte(i) else 1 for i in ids]
    tokenizer = spm(
        tokens=array("STRING", [judge.id_to_piece(i) for i in ids]), token_type=array("INT32", kinds),
        scores=array("FLOAT32", [judge.get_score(i) for i in ids]),
    )
    safe = [line for line in lines if not any(special in line for special in ("<s>", "</s>", "<unk>"))]
    for line in [*safe, "  two  spaces ", "🦙 日本\n\n", ""]:
        assert tokenizer.encode(line) == [1, *judge.encode(line)], line


# -- broken vocabularies

def with_texts(change: dict[int, str]) -> LazyArray:
    return array("STRING", [change.get(i, text) for i, text in enumerate(BPE_TEXTS)])


@pytest.mark.parametrize("changes, says", [
    ({"model": None}, "no tokenizer.ggml.model"),
    ({"model": "plamo2"}, "'plamo2'; this build reads gpt2, llama, gemma4, t5, bert, rwkv"),
    ({"pre": "no-such-cut"}, "'no-such-cut'; this build knows gpt-2, llama-bpe, .*qwen2"),
    ({"pre": None}, "pre-tokenizer .* is absent"),
    ({"tokens": None}, "tokens is absent"),
    ({"tokens": array("STRING", [])}, "tokens is 0 x STRING"),
    ({"tokens": array("INT32", [1, 2])}, "tokens is 2 x INT32"),
    ({"tokens": 7}, "tokens is no array"),
    ({"merges": None}, "merges is absent"),
    ({"merges": array("STRING", ["zz q"])}, "merge 0 is 'zz q'"),
    ({"merges": array("STRING", ["nospace"])}, "merge 0 is 'nospace'"),
    ({"merges": array("STRING", ["x y"])}, "merge 0 is 'x y'"),  # both are tokens, xy is none
    ({"tokens": with_texts({5: BPE_TEXTS[9]})}, "tokens 5 and 9 are both"),
    ({"tokens": with_texts({5: "\udcff"})}, "not UTF-8"),
    ({"tokens": LazyArray("STRING", 2, lambda: ["a", b"\xff"])}, "another type"),
    ({"token_type": array("INT32", [1, 1])}, "token_type has 2 entries for"),
    ({"token_type": array("STRING", ["x"] * len(BPE_TEXTS))}, "another type"),
    ({"add_bos_token": "yes"}, "add_bos_token is 'yes'"),
    ({"add_bos_token": True, "bos_token_id": 10**6}, "bos_token_id is 1000000"),
    ({"add_bos_token": True, "bos_token_id": -1}, "bos_token_id is -1"),
    ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is absent"),
])
def test_a_broken_vocabulary_says_what_is_wrong_and_how_to_go_on(changes, says):
    with pytest.raises(FileError, match=f"made.gguf has no usable tokenizer: .*{says}.*--tokens"):
        bpe(**changes).encode("hello")


@pytest.mark.parametrize("changes, says", [
    ({"scores": None}, "scores is absent"),
    ({"scores": array("FLOAT32", [0.0])}, "scores has 1 entries for"),
    ({"scores": array("FLOAT32", [float("nan")] * len(SPM_TEXTS))}, "NaN"),
    ({"tokens": array("STRING", ["<unk>", "<s>", "</s>", "t3"]), "scores": array("FLOAT32", [0.0] * 4),
      "token_type": array("INT32", [2, 3, 3, 1])}, "can spell nothing"),
])
def test_a_broken_spm_vocabulary_says_what_is_wrong(changes, says):
    with pytest.raises(FileError, match=says):
        spm(**changes).encode("abc")


def test_a_character_that_the_vocabulary_cannot_spell_is_named_and_never_dropped():
    texts = ["<unk>", "<s>", "</s>", "▁", "a"]
    kinds = array("INT32", [2, 3, 3, 1, 1])
    small = spm(tokens=array("STRING", texts), scores=array("FLOAT32", [0.0] * 5), token_type=kinds)
    with pytest.raises(UsageError, match="no token for 'b' and no byte token <0x62>"):
        small.encode("ab")
    without_x = array("STRING", ["" if text == "x" else text for text in BPE_TEXTS])
    with pytest.raises(UsageError, match="no token for byte 0x78"):
        bpe(tokens=without_x).encode("x")


def test_a_refused_tokenizer_still_shows_the_texts_that_the_file_has():
    tokenizer = bpe(pre="no-such-cut")
    assert tokenizer.refusal is not None and tokenizer.token_text(BPE_TEXTS.index("hello")) == "hello"
    assert bpe(tokens=None).token_text(0) is None
    assert bpe().token_text(10**6) is None
    assert bpe().token_text(-1) is None


def test_a_prompt_that_is_not_unicode_is_the_users_mistake():
    with pytest.raises(UsageError, match="not UTF-8"):
        bpe().encode("\udcff")


def test_opening_parses_nothing():
    def refuse() -> list:
        raise AssertionError("parsed at open")

    tokens, merges = LazyArray("STRING", 152_000, refuse), LazyArray("STRING", 151_000, refuse)
    assert bpe(tokens=tokens, merges=merges).refusal is None


def test_importing_the_tokenizer_loads_no_heavy_library():
    code = ("import sys, core.text.tokenizer;"
            "print(sorted({'tokenizers', 'jinja2', 'torch', 'gguf'} & set(sys.modules)))")
    here = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tables_name_what_the_messages_list():
    assert set(FAMILIES) == {"gpt2", "llama", "gemma4", "t5", "bert", "rwkv"}
    assert {"gpt-2", "llama-bpe", "qwen2"} <= set(PRE_NAMED)
