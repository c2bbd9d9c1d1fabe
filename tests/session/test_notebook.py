"""Results in Python: README's page runs as it stands, and each result says itself in a prompt, a notebook, a table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from core import session
from tests.support.small_models import write_model

README = Path(__file__).parents[2] / "README.md"
EVIL = "<script>x</script>|\x1b[2J`"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What README's page leaves, run in a folder with a good file and a bad one."""
    folder = tmp_path_factory.mktemp("page")
    for name, times in (("good", 1.0), ("bad", 1.5)):
        write_model(folder / f"{name}.gguf", n_layer=2, tokenizer="bpe", keys={"qwen2.context_length": 64},
                    changes={"blk.1.ffn_up.weight": lambda x, times=times: x * times})
    code = next(c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
                if c.startswith("from core import session"))
    assert code.count("\n") <= 11, "ten lines"
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        exec(compile(code, "README.md", "exec"), found)
    return found


@pytest.mark.parametrize("name, word, column", [
    ("trace", "good.gguf", "std"), ("check", "PASS", "nmse"), ("pair", "H2", "rel_l2"), ("audit", "bad.gguf", "kind"),
    ("kl", "nats", "kl")])
def test_a_result_says_itself_in_a_prompt_a_notebook_and_a_table(page, name, word, column):
    result = page[name]
    html, markdown = result._repr_html_(), result._repr_markdown_()
    assert word in repr(result) and word in html and word in markdown and len(html) < 40_000
    table = result.to_polars()
    assert table.height == len(result.rows()) and (column in table.columns or not table.height)
    if table.height > 12:
        assert f"{table.height - len(result.rows_shown())} more rows" in html


def test_the_table_of_a_pair_is_that_of_its_cells_and_shows_what_differs_first(page):
    pair = page["pair"]
    shown = pair.rows_shown()
    assert (shown[0]["layer"], shown[0]["stage"]) == pair.first and page["table"].height == len(pair.cells)
    assert page["table"]["rel_l2"].to_list() == [row["rel_l2"] for row in pair.rows()]


def test_a_files_text_steers_no_notebook(page):
    result = replace(page["pair"], reasons=(EVIL,))
    html, markdown = result._repr_html_(), result._repr_markdown_()
    assert "<script>" not in html and "\x1b" not in html + markdown + repr(result)
    assert "\\<script\\>" in markdown and "\\|" in markdown


def test_a_side_is_named_as_on_a_command_line():
    side = session.source("llama.cpp:/m/a.gguf@threads=3")
    assert (side.scheme, side.path, side.threads) == ("llama.cpp", Path("/m/a.gguf"), 3)
