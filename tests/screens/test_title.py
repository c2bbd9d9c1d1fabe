"""A screen's first line: names give way, and what stands at the right ends at the edge."""

from __future__ import annotations

import pytest

from apr_tui.render.title import fit_names, push_right
from apr_tui.style import spans_width


@pytest.mark.parametrize(("names", "room", "shown"), [
    (["tiny.gguf"], 20, ["tiny.gguf"]),
    (["a-long-name.gguf"], 8, ["a-long-…"]),
    (["a-long-name.gguf"], -5, ["a-lo…"]),
    (["a-long-name.gguf", "b.gguf"], 17, ["a-long-…", "b.gguf"]),
    (["\x1b[31mred"], 20, ["\\x1b[31mred"]),
])
def test_names_in_a_title_share_the_room_and_keep_their_least(names, room, shown):
    assert fit_names(names, room, 5) == shown


def test_what_stands_at_the_right_ends_at_the_width_or_behind_the_rest():
    assert spans_width(push_right([("left", "text")], "right", 20)) == 20
    assert push_right([("left", "text")], "right", 5) == [("left", "text"), ("right", "quiet")]
    assert push_right([("中", "text")], "r", 5)[-1] == ("  r", "quiet")
