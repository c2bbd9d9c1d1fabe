"""The guide's steps, followed without judgement, name a planted bug and nothing on a sound file."""

from __future__ import annotations

import pytest

from tests.bench.agent import Answer, Bug, find, is_right
from tests.support.small_models import write_model

FEED = ("--tokens", "3,17,5,42")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A good model, and bad ones by their bytes."""
    folder = tmp_path_factory.mktemp("agent")
    changes = {"good": {}, "times": {"blk.1.ffn_up.weight": lambda x: x * 1.25},
               "zeros": {"blk.1.attn_k.weight": lambda x: x * 0}}
    return {name: str(write_model(folder / f"{name}.gguf", n_layer=2, changes=changed))
            for name, changed in changes.items()}


@pytest.mark.parametrize("bad, engine, place, by", [
    ("good", ("--plant", "shift@1.ffn_norm"), (1, "ffn_norm"), "check"), ("times", (), (1, "ffn_up"), "compare"),
    ("zeros", (), (1, "qkv"), "audit")])
def test_a_bug_is_named_in_at_most_four_commands(files, bad, engine, place, by):
    bug = Bug(bad, files[bad], files["good"], place, engine, FEED)
    said = find(bug)
    assert is_right(bug, said) and said.by == by and said.commands <= 4


def test_a_sound_file_is_accused_of_nothing(files):
    assert find(Bug("", files["good"], files["good"], (0, "qkv"), (), FEED)) == Answer(4, "nothing")
