"""Six screens as pictures, at two sizes, dark, light and without colour: each can be read, and all of it is there."""

from __future__ import annotations

import ast
import html
import re
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

from apr_tui.palette import DARK
from apr_tui.style import paint
from tests.screens.test_palette import LEAST, contrast
from tests.support.fake_session import FakeSession, console, pair, text_of, until

SCREENS = {  # name -> keys from the trace on, and a word that stands there
    "trace": ((), "looks like the model"), "layer": (("enter",), "why it grew"),
    "view": (("enter", "3"), "head 0 of 2"), "comparison": (("g",), "X H2"),
    "help": (("question_mark",), "Keys of this screen"), "overview": (("o",), "ffn_swigl"),
}
SIZES = ((80, 24), (200, 60))
THEMES = ("dark", "light", "no colour")
CASES = [(name, size, THEMES[i % 3]) for i, (name, size) in enumerate(product(SCREENS, SIZES))]
ALL = list(product(SCREENS, SIZES, THEMES))
PLAIN = {"#c5c8c6", "#292929"}  # what a terminal has by itself, as Rich draws it
SVG = "{http://www.w3.org/2000/svg}"


def rgb(colour):
    return tuple(bytes.fromhex(colour.lstrip("#")))


async def picture(monkeypatch, name, size, theme):
    """The screen's SVG and its text."""
    keys, word = SCREENS[name]
    more = {} if theme == "no colour" else {"theme": theme}
    async with console(monkeypatch, FakeSession(comparison=pair()), size, no_color=not more, **more) as (app, pilot):
        await pilot.press(*keys)
        await until(pilot, lambda: app.owner is None and word in text_of(app))
        found = app.export_screenshot(), text_of(app)
    paint(DARK)
    return found


def drawn(svg):
    """Each text of a picture with its colour and the ground it stands on, and the lines they make."""
    root = ElementTree.fromstring(svg)
    fills = dict(re.findall(r"\.(\S+)\s*\{\s*fill:\s*(#[0-9a-fA-F]{6})", svg))
    grounds = [(*(float(r.get(k)) for k in ("x", "y", "width", "height")), r.get("fill"))
               for r in root.iter(f"{SVG}rect") if r.get("fill", "").startswith("#")]
    texts, lines = [], {}
    for text in root.iter(f"{SVG}text"):
        content = html.unescape(text.text or "").replace("\xa0", " ")
        if text.get("class") not in fills or not text.get("clip-path"):
            continue
        x, y = float(text.get("x")), float(text.get("y"))
        under = [fill for left, top, wide, tall, fill in grounds
                 if left <= x + 1 < left + wide and top <= y - 4 < top + tall]
        texts.append((content, fills[text.get("class")], under[-1] if under else None))
        lines.setdefault(y, []).append(content)
    return texts, ["".join(parts).rstrip() for _, parts in sorted(lines.items())]


@pytest.mark.parametrize(("name", "size", "theme"), [
    pytest.param(*case, marks=() if case in CASES else pytest.mark.slow) for case in ALL])
async def test_a_picture_shows_all_of_the_screen_and_each_word_can_be_read(monkeypatch, name, size, theme):
    svg, text = await picture(monkeypatch, name, size, theme)
    texts, lines = drawn(svg)
    assert ["".join(line.split()) for line in lines if line.strip()] == [
        "".join(line.split()) for line in text.splitlines() if line.strip()], "another text than the screen's"
    poor = {(content.strip(), colour, ground) for content, colour, ground in texts
            if content.strip() and contrast(rgb(colour), rgb(ground or "#121212")) < LEAST}
    assert not poor, f"cannot be read: {sorted(poor)[:5]}"
    if theme == "no colour":
        assert {colour for _, colour, _ in texts} <= PLAIN, "a colour was drawn"


def test_a_style_that_cannot_be_read_would_be_seen():
    assert contrast(rgb("#5f5f5f"), rgb("#121212")) < LEAST < contrast(rgb("#9e9e9e"), rgb("#121212"))


def test_each_frozen_screen_is_held_to_a_meaning_too():
    bare = []
    for path in Path(__file__).parent.glob("test_*.py"):
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes = list(ast.walk(test))
                frozen = any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "assert_screen" for n in nodes)
                if frozen and not any(isinstance(n, ast.Assert) for n in nodes):
                    bare.append(test.name)
    assert not bare, f"frozen, and nothing is said of what it means: {bare}"
