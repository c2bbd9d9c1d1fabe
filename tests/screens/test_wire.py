"""What goes over the line: a terminal that gets the differences shows what one shows that gets everything."""

from __future__ import annotations

import random

import pyte
import pytest

from apr_tui.wire import Wire, number_of, restyled

SIZE = (30, 6)
STYLES = ["", "1", "7", "1;7", "4", "38;2;208;208;208;48;2;18;18;18", "1;38;2;215;95;0;48;2;18;18;18",
          "38;2;1;2;3;48;2;32;21;12", "31;40", "97;44", "38;5;75", "7;38;2;208;208;208;48;2;18;18;18", "3;9;53"]
WORDS = ["a", " ", "    ", "spike", "─────", "▄▄", "日本", "é", "·", "12.34", "⣿⣀", "e\u0301x", "🙂", "  X"]


def terminal():
    screen = pyte.Screen(*SIZE)
    stream = pyte.Stream(screen)
    return screen, stream


def look(screen):
    """What a person sees of a terminal: of a blank its ground and what marks it."""
    rows = []
    for y in range(SIZE[1]):
        row = []
        for x in range(SIZE[0]):
            cell = screen.buffer[y][x]
            marks = cell.reverse, cell.underscore, cell.strikethrough
            tone = (cell.fg, cell.bold, cell.italics) if cell.data != " " or cell.reverse else ()
            row.append((cell.data, cell.bg, marks, tone))
        rows.append(row)
    return rows


def exact(data):
    """The same colours as the wire writes, for pyte names a colour by how it was written."""
    from apr_tui.wire import TOKEN

    parts = []
    for token in TOKEN.finditer(data):
        if token[2] == "m":
            colour, ground, rest = restyled(("", "", frozenset()), token[1])
            parts.append(f"\x1b[{';'.join(['0', *sorted(rest), *filter(None, (colour, ground))])}m")
        else:
            parts.append(token[0])
    return "".join(parts)


def width(word):
    return sum(2 if c in "日本🙂" else c != "\u0301" for c in word)


def frame(chance):
    """A write as Textual makes it: lines from some place, each span with its whole style, then a reset.

    Half a wide character is never written over: rows that have some are written whole.
    """
    parts = []
    for _ in range(chance.randint(1, 5)):
        row, room = chance.randrange(SIZE[1]), 0
        column = chance.randrange(SIZE[0]) if row % 2 else 0
        parts.append(f"\x1b[{row + 1};{column + 1}H")
        while True:
            word = chance.choice([w for w in WORDS if row % 2 == 0 or not set(w) & set("日本🙂")])
            room += width(word)
            if column + room >= SIZE[0]:
                parts.append("" if row % 2 else " " * (SIZE[0] - column - room + width(word)))
                break
            parts.append(f"\x1b[{chance.choice(STYLES)}m{word}\x1b[0m")
    return "".join(parts)


@pytest.mark.parametrize("seed", range(40))
def test_a_terminal_that_gets_the_differences_looks_as_one_that_gets_all(seed):
    chance, wire = random.Random(seed), Wire()
    (whole, all_of_it), (part, differences) = terminal(), terminal()
    for _ in range(12):
        data = frame(chance)
        all_of_it.feed(exact(data))
        waits = chance.random() < 0.3  # several writes become one
        differences.feed(wire.take(data) + ("" if waits else wire.flush()))
    differences.feed(wire.flush())
    assert look(part) == look(whole)


def test_nothing_is_written_twice_and_a_blank_says_no_colour():
    wire = Wire()
    wire.take("\x1b[2;3H\x1b[38;2;208;208;208;48;2;18;18;18mabc\x1b[0m")
    assert wire.flush() == "\x1b[2;3H\x1b[;38;5;252;48;5;233mabc", "as a colour of the 256, which is the same one"
    wire.take("\x1b[2;3H\x1b[38;2;208;208;208;48;2;18;18;18mabd\x1b[0m\x1b[1;38;2;255;255;255;48;2;18;18;18m \x1b[0m")
    assert wire.flush() == "\x1b[2;5Hd ", "one cell, and a blank after it in the style that is there"
    wire.take("\x1b[2;3H\x1b[38;2;208;208;208;48;2;18;18;18mabd\x1b[0m")
    assert not wire.flush()


def test_what_is_no_picture_goes_through_behind_what_waited():
    wire = Wire()
    assert wire.take("\x1b[1;1Ha\x1b]52;c;eA==\x07\x1b[?25l") == "\x1b[1H\x1b[ma\x1b]52;c;eA==\x07\x1b[?25l"
    wire.take("\x1b[?2026h\x1b[1;2Hb\x1b[?2026l")
    assert wire.flush() == "\x1b[?2026h\x1b[1;2H\x1b[mb\x1b[?2026l", "one frame, between the marks of the terminal"


def test_after_others_wrote_everything_is_written_again():
    wire = Wire()
    wire.take("\x1b[1;1Habc")
    wire.flush()
    wire.forget()
    wire.take("\x1b[1;1Habc")
    assert wire.flush() == "\x1b[1H\x1b[mabc"


@pytest.mark.parametrize(("rgb", "number"), [((0, 0, 0), 16), ((255, 255, 255), 231), ((208, 208, 208), 252),
                                             ((18, 18, 18), 233), ((95, 175, 255), 75), ((1, 2, 3), None),
                                             ((238, 238, 238), 255), ((248, 248, 248), None)])
def test_a_colour_of_the_256_is_known_by_its_number(rgb, number):
    assert number_of(rgb) == number
