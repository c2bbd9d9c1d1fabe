"""A library written in Rust panics at a stranger's text: a sentence, and nothing of what it prints is seen."""

import os
import threading

import pytest

from core.formats.open_model import open_model
from core.system.errors import FileError
from core.text.library import no_panic
from core.text.tokenizer import open_tokenizer
from tests.support.small_models import write_model


def panicking(folder):
    """A T5 tokenizer whose table of characters is too short: the library's normalizer goes past its end."""
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": [4, 0, 0, 0, *bytes(12)]}
    return write_model(folder / "m.gguf", tokenizer="spm", n_layer=1, d_model=16, n_head=2, n_kv_head=1, d_ff=16,
                       keys=keys)


def test_a_panic_is_a_sentence_and_prints_nothing(tmp_path, capfd):
    tokenizer = open_tokenizer(open_model(panicking(tmp_path)))
    for _ in range(2):
        with pytest.raises(FileError, match="`tokenizers` library refused it"):
            tokenizer.encode("abc")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_threads_inside_at_once_give_stderr_back(capfd):
    inside, left = threading.Barrier(2), threading.Barrier(2)

    def work(first):
        with no_panic():
            inside.wait(5)
            if first:
                left.wait(5)
        if not first:
            left.wait(5)

    threads = [threading.Thread(target=work, args=(first,)) for first in (True, False)]
    [t.start() for t in threads]
    [t.join(10) for t in threads]
    os.write(2, b"back")
    assert capfd.readouterr().err == "back"


@pytest.mark.parametrize("error,told", [(Exception("x"), ValueError), (KeyError("x"), KeyError),
                                        (KeyboardInterrupt(), KeyboardInterrupt), (FileError("x"), FileError)])
def test_only_the_library_s_own_errors_are_turned(error, told):
    with pytest.raises(told), no_panic():
        raise error


def test_without_a_stderr_nothing_is_broken():
    kept = os.dup(2)
    os.close(2)
    try:
        with no_panic():
            pass
    finally:
        os.dup2(kept, 2)
        os.close(kept)
