"""The palettes: every style can be read on its ground, and the ground is found and painted."""

from __future__ import annotations

import re

import pytest
from rich.color import Color

from apr_tui import ground
from apr_tui.palette import ANSI, DARK, LIGHT, PALETTES
from apr_tui.style import paint, painted, strip, style
from tests.support.fake_session import FakeSession, console, text_of

LEAST = 4.5  # WCAG 2.2, 1.4.3: normal text
RGB = tuple[int, int, int]
# what terminals make of the 16 colours: 0 to 15 (XTerm-col.ad; VGA; Windows' Campbell; VTE 0.76; Apple)
TABLES = {
    "xterm": "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5 7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff "
             "ffffff",
    "vga": "000000 aa0000 00aa00 aa5500 0000aa aa00aa 00aaaa aaaaaa 555555 ff5555 55ff55 ffff55 5555ff ff55ff 55ffff "
           "ffffff",
    "campbell": "0c0c0c c50f1f 13a10e c19c00 0037da 881798 3a96dd cccccc 767676 e74856 16c60c f9f1a5 3b78ff b4009e "
                "61d6d6 f2f2f2",
    "vte": "171421 c01c28 26a269 a2734c 12488b a347ba 2aa1b3 d0cfcc 5e5c64 f66151 33da7a e9ad0c 2a7bde c061cb 33c7de "
           "ffffff",
    "apple": "000000 990000 00a600 999900 0000b2 b200b2 00a6b2 bfbfbf 666666 e50000 00d900 e5e500 0000ff e500e5 00e5e5 "
             "e5e5e5",
}


def luminance(colour: RGB) -> float:
    """Relative luminance of WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: RGB, b: RGB) -> float:
    """Contrast ratio of WCAG 2.2."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def rgb(colour: Color | None, table: str) -> RGB:
    """What a terminal with this table shows."""
    assert colour is not None, "a style without a colour of its own"
    if colour.triplet is not None:
        return tuple(colour.triplet)
    assert colour.number is not None and colour.number < 16, colour
    return tuple(bytes.fromhex(TABLES[table].split()[colour.number]))


@pytest.mark.parametrize("name", PALETTES)
def test_every_style_of_a_palette_can_be_read_on_every_ground_that_it_stands_on(name):
    palette = PALETTES[name]
    levels = [base + f"@{level}" for base in ("text", "quiet") for level in range(len(palette.shades) + 1)]
    poor = {}
    for table in TABLES if palette.is_ansi else ("xterm",):
        for base in (*palette.styles, *levels):
            found = style(base, name)
            ratio = contrast(rgb(found.color, table), rgb(found.bgcolor, table))
            if ratio < LEAST:
                poor[table, base] = round(ratio, 2)
        field = contrast(rgb(Color.parse(palette.styles["text"]), table), rgb(Color.parse(palette.field), table))
        assert field >= LEAST, f"{name}: what is typed stands at {field:.2f}"
    assert not poor, f"{name}: below {LEAST}: {poor}"


def test_all_palettes_have_the_same_styles():
    assert {tuple(sorted(p.styles)) for p in PALETTES.values()} == {tuple(sorted(DARK.styles))}


@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_the_ground_is_painted_under_every_cell(palette):
    before = painted()
    paint(palette)
    try:
        line = strip([("a", "text"), ("b", "bad+cursor"), ("c", "quiet@2")], 20)
        assert all(s.style is not None and s.style.bgcolor is not None for s in line)
    finally:
        paint(before)


async def test_light_paints_a_light_screen(monkeypatch):
    async with console(monkeypatch, FakeSession(), theme="light") as (app, _):
        grounds = {s.style.bgcolor.name for line in app.screen._compositor.render_strips() for s in line
                   if s.style is not None and s.style.bgcolor is not None and not s.style.reverse}
        assert {g.lower() for g in grounds} <= {LIGHT.ground, *LIGHT.shades}, grounds
    paint(DARK)


async def test_every_widget_of_the_console_is_drawn_in_16_colours(monkeypatch):
    async with console(monkeypatch, FakeSession(), theme="ansi") as (app, pilot):
        for key in ("f", "escape", "question_mark", "escape"):
            await pilot.press(key)
        assert "tiny.gguf" in text_of(app) and app.failure is None
    paint(DARK)


@pytest.mark.parametrize(("answer", "is_light"), [
    (b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62;c", True), (b"\x1b]11;rgb:1010/1010/1414\x07\x1b[?1;2c", False),
    (b"\x1b]11;rgba:fd/f6/e3/ff\x1b\\", True), (b"\x1b[?1;2c", None), (b"", None),
])
def test_the_answer_of_the_terminal_is_read(answer, is_light):
    assert ground.read_answer(answer) is is_light


@pytest.mark.parametrize(("told", "is_light"), [("0;15", True), ("15;0", False), ("0;default;7", True)])
def test_colorfgbg_is_believed_before_the_terminal_is_asked(monkeypatch, told, is_light):
    monkeypatch.setenv("COLORFGBG", told)
    monkeypatch.setattr(ground, "_ask", lambda: pytest.fail("it asked"))
    assert ground.is_light() is is_light


def test_a_terminal_of_16_colours_gets_the_palette_of_16(monkeypatch):
    monkeypatch.setattr(ground, "has_16_colours", lambda: True)
    assert ground.theme_of("auto") == ANSI.name
    assert ground.theme_of("dark") == "dark", "what is asked for is given"


def test_no_style_of_the_16_colours_is_written_as_another_colour():
    assert all(re.fullmatch(r"[a-z_ ]+", spec) for spec in ANSI.styles.values())
