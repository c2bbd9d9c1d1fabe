"""What a vocabulary and an embedding do not share is a note, each kind once, and a sound file has none."""

from __future__ import annotations

import pytest

from core.formats.model_file import LazyArray
from core.text.vocabulary_notes import vocabulary_notes


class File:
    """Stands in for a model file: its keys alone are read."""

    def __init__(self, n_token=4, types=(3, 1, 1, 1), template=None):
        self.keys = {"tokenizer.ggml.tokens": LazyArray("STRING", n_token, lambda: pytest.fail("tokens were parsed")),
                     "tokenizer.ggml.token_type": LazyArray("INT32", len(types), lambda: list(types)),
                     "tokenizer.chat_template": template}


@pytest.mark.parametrize(("file", "n_row", "says"), [
    (File(n_token=6), 4, "tokens from 4 on have none"), (File(n_token=3), 4, "1 rows belong to no token"),
    (File(types=(1, 1, 1, 1)), 4, "no token is of type control"),
    (File(template="{{bos_token}}{{ bos_token }}{% for m in messages %}"), 4, "BOS token twice")])
def test_each_mismatch_is_a_note(file, n_row, says):
    (note,) = vocabulary_notes(file, n_row)
    assert says in note


def test_a_sound_file_has_no_note():
    assert vocabulary_notes(File(template="{{ bos_token }}{% for m in messages %}"), 4) == ()
