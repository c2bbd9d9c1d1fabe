"""Chat templates: what they see, and that a hostile one can neither hang nor escape."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.formats.model_file import LazyArray, ModelFile
from core.system.errors import AprError, FileError, UsageError
from core.text.bpe import BYTE_LETTERS
from core.text.chat_sandbox import render
from core.text.chat_template import render_chat_template
from core.text.tokenizer import Tokenizer, open_tokenizer

SIMPLE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
BOS, EOS = 256, 257


def chat(template: object, **changes: object) -> Tokenizer:
    texts, kinds = [*BYTE_LETTERS, "<|bos|>", "<|end|>"], [1] * 256 + [3, 3]
    keys = {
        "model": "gpt2", "pre": "qwen2", "tokens": LazyArray("STRING", len(texts), lambda: texts),
        "merges": LazyArray("STRING", 0, list), "token_type": LazyArray("INT32", len(kinds), lambda: kinds),
        "bos_token_id": BOS, "eos_token_id": EOS,
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in (keys | changes).items()}
    named |= {"tokenizer.chat_template": template} if template is not None else {}
    return open_tokenizer(ModelFile(Path("made.gguf"), "gguf", named, {}, 0, ""))


def test_a_template_sees_the_message_and_the_special_tokens_of_the_file():
    template = "{{ bos_token }}" + SIMPLE + "{{ eos_token }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    assert chat(template).apply_chat_template("hi") == "<|bos|><|user|>hi<|end|><|assistant|>"


def test_a_bos_that_encode_adds_is_not_there_twice():
    tokenizer = chat("{{ bos_token }}" + SIMPLE, add_bos_token=True)
    assert tokenizer.encode(tokenizer.apply_chat_template("hi")).count(BOS) == 1


def test_a_file_without_a_template_says_to_leave_chat_out():
    for absent in (None, "", 7):
        with pytest.raises(UsageError, match="Leave --chat out"):
            chat(absent).apply_chat_template("hi")


@pytest.mark.parametrize("template, says", [
    ("{{ raise_exception('roles must\n alternate \x1b[31m') }}", r"roles must alternate \\x1b\[31m"),
    ("{% for %}", "TemplateSyntaxError"),
    ("{{ messages[7].content }}", "UndefinedError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    ("{{ 'x' * 2000000 }}", "it wrote 2000000 characters"),
    ("{{ ('x' * 10**9)|length }}", "MemoryError|used more than"),
    ("{{ '\ud800' }}", "surrogates"),
])
def test_a_hostile_or_broken_template_is_one_clear_sentence(template, says):
    with pytest.raises(FileError, match=f"chat template could not be rendered: .*({says}).*Leave --chat out"):
        render_chat_template(template, "hi", "", "")


def test_a_template_that_loops_for_ever_is_stopped():
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(AprError, match="used more than"):
        render_chat_template(loop, "hi", "", "")


def test_a_template_has_no_clock():
    assert render("{{ strftime_now is defined }}", "hi", "", "") == "False"
