"""Hold what the terminal shows, and write only what a frame changes of it. It knows no widgets and no terminal device.

Textual writes whole lines, each span with all of its colours, and a new screen twice: 18 KB where Enter changes half of
80 x 24. Here such writes fill a picture of what is wanted; flush() writes the cells that differ from what is shown,
with the shortest change of style. What is neither text, a style nor a cursor's place goes through as it is.
"""

from __future__ import annotations

import re
from functools import cache

from rich.cells import cell_len

TOKEN = re.compile(
    r"\x1b\[([0-9;]*)([mH])|(\r)|(\n)|(\x1b\[\?2026[hl])|"  # style, place; line ends; frames
    r"(\x1b(?:\[[^@-~]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|.))|([^\x1b\r\n]+)", re.DOTALL)
SYNC, END_SYNC = "\x1b[?2026h", "\x1b[?2026l"
POINTER = "\x1b]22;"  # the mouse's shape
NEAR = 6  # cells that are written again rather than jumped over: a jump costs six bytes and more
TAIL = ""  # of a wide character: its second cell

Style = tuple[str, str, frozenset[str]]  # colour, ground, and the rest (bold, reverse ...), as SGR parameters
Cell = tuple[str, Style]
PLAIN: Style = ("", "", frozenset())
ENDS = {"1": "22", "3": "23", "4": "24", "7": "27", "9": "29"}  # what ends bold, italic, underline, reverse, strike
SEEN_IN_BLANKS = frozenset({"4", "7", "9", "21", "53"})  # underline, reverse, strike: they show where no character is


class Wire:
    """The picture of one terminal. take() gives what must go at once, flush() what the frame changed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing is known of the terminal any more: it was resized, cleared or used by others."""
        self._shown: dict[int, list[Cell | None]] = {}
        self._wanted: dict[int, list[Cell | None]] = {}
        self._row, self._column, self._style = 0, 0, PLAIN  # of Textual's writes
        self._at: tuple[int, int] | None = None             # of the terminal's cursor
        self._now: Style | None = None                      # of the terminal
        self._has_sync = False

    @property
    def waits(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._wanted)

    def take(self, data: str) -> str:
        """Take a write. Return what is no picture and goes through, behind what waited before it."""
        passed: list[str] = []
        for token in TOKEN.finditer(data):
            numbers, kind, home, feed, sync, other, text = token.groups()
            if text is not None:
                self._put(text)
            elif kind == "m":
                self._style = restyled(self._style, numbers)
            elif kind == "H":
                row, _, column = numbers.partition(";")
                self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
            elif home is not None:
                self._column = 0
            elif feed is not None:
                self._row += 1
            elif sync is not None:
                self._has_sync = True
            elif not other.startswith(POINTER):
                passed += [self.flush(), other]
                self._at = self._now = None  # whatever it did
        return "".join(passed)

    def flush(self) -> str:
        """Write the difference between what is wanted and what is shown; it is shown from now on."""
        written: list[str] = []
        for row in sorted(self._wanted):
            wanted = self._wanted[row]
            shown = self._shown.setdefault(row, [])
            shown += [None] * (len(wanted) - len(shown))
            self._write_row(row, wanted, shown, written)
        self._wanted = {}
        frame = "".join(written)
        return f"{SYNC}{frame}{END_SYNC}" if frame and self._has_sync else frame

    def _put(self, text: str) -> None:
        """Put text into the picture, a cell or two a character; what takes no cell joins the one before."""
        line, at = self._wanted.setdefault(self._row, []), self._column
        if text.isascii():
            cells: list[Cell | None] = [(character, self._style) for character in text]
        else:
            cells = []
            for character in text:
                width = cell_len(character)
                if width:
                    cells += [(character, self._style), (TAIL, self._style)][:width]
                elif cells and cells[-1] is not None:
                    last = next(i for i in range(len(cells) - 1, -1, -1) if cells[i][0] is not TAIL)  # type: ignore[index]
                    cells[last] = (cells[last][0] + character, self._style)  # type: ignore[index]
        line += [None] * (at + len(cells) - len(line))
        line[at:at + len(cells)] = cells
        self._column = at + len(cells)

    def _write_row(self, row: int, wanted: list[Cell | None], shown: list[Cell | None], written: list[str]) -> None:
        """Write the cells of a row that differ, and the few that stand between two of them."""
        changed = [i for i, cell in enumerate(wanted) if cell is not None and not is_same(cell, shown[i])]
        end = -1
        for i in changed:
            if i <= end:
                continue
            start = i
            while start > 0 and (wanted[start] or shown[start] or (" ", PLAIN))[0] is TAIL:  # a wide one goes whole
                start -= 1
            if 0 <= start - end - 1 <= NEAR and self._at == (row, end + 1):
                between = [wanted[j] or shown[j] for j in range(end + 1, start)]
                if all(cell is not None and self._suits(cell) for cell in between):
                    start = end + 1
            end = self._write_run(row, start, i, wanted, shown, written)

    def _write_run(
        self, row: int, start: int, first: int, wanted: list[Cell | None], shown: list[Cell | None], written: list[str],
    ) -> int:
        """Write from start up to the last changed cell of the run; return its column."""
        if self._at != (row, start):
            written.append(f"\x1b[{row + 1};{start + 1}H" if start else f"\x1b[{row + 1}H")
        at = start
        while at < len(wanted):
            cell = wanted[at] or shown[at]
            if at > first and (cell is None or (is_same(cell, shown[at]) and cell[0] is not TAIL)):
                break
            assert cell is not None
            text, style = cell
            written.append(self._restyle(text, style) + text)
            shown[at] = cell
            at += 1
            while at < len(wanted) and text and cell_len(text) == 2 and (tail := wanted[at]) and tail[0] is TAIL:
                shown[at], at = tail, at + 1
            self._at = (row, at) if has_sure_width(text) else None
            if self._at is None:
                break
        return at - 1

    def _restyle(self, text: str, style: Style) -> str:
        """The shortest change from the terminal's style to this one; nothing for a blank on the same ground."""
        now = self._now
        if self._suits((text, style)):
            return ""
        self._now = style
        colour, ground, rest = style
        if now is None or not now[2] - rest <= ENDS.keys() or (now[0] and not colour) or (now[1] and not ground):
            return f"\x1b[{';'.join(['', *sorted(rest), *filter(None, (colour, ground))])}m"
        parts = [*sorted({ENDS[part] for part in now[2] - rest}), *sorted(rest - now[2]),
                 colour * (colour != now[0]), ground * (ground != now[1])]
        return f"\x1b[{';'.join(filter(None, parts))}m"

    def _suits(self, cell: Cell) -> bool:
        """Whether a cell can be written in the terminal's style as it is."""
        now = self._now
        return now == cell[1] or (now is not None and cell[0] == " " and is_same((" ", now), cell))


def is_same(cell: Cell, other: Cell | None) -> bool:
    """Say whether two cells look the same: of a blank only the ground is seen, and what marks a blank too."""
    if other is None or cell == other:
        return other is not None
    if cell[0] != " " or other[0] != " ":
        return False
    (_, ground, rest), (_, other_ground, other_rest) = cell[1], other[1]
    return ground == other_ground and not (rest | other_rest) & SEEN_IN_BLANKS


@cache
def has_sure_width(text: str) -> bool:
    """Whether every terminal gives text one cell: of what else is written, the cursor's place is not believed."""
    is_drawing = "\u2500" <= text <= "\u259f" or "\u2800" <= text <= "\u28ff"
    return len(text) == 1 and (text.isascii() or is_drawing or text in "·…")


@cache
def restyled(style: Style, numbers: str) -> Style:
    """The style after an SGR sequence; colours of the 256 are written as such, which is shorter."""
    colour, ground, rest = style
    parts = numbers.split(";")
    while parts:
        part = parts.pop(0)
        if part in ("", "0"):
            colour, ground, rest = PLAIN
        elif part in ("38", "48"):
            size = {"2": 4, "5": 2}.get(parts[0] if parts else "", 0)
            spec = shortened(part, parts[:size])
            del parts[:size]
            colour, ground = (spec, ground) if part == "38" else (colour, spec)
        elif part in ("39", "49"):
            colour, ground = ("", ground) if part == "39" else (colour, "")
        elif part.isdigit() and (30 <= int(part) <= 37 or 90 <= int(part) <= 97):
            colour = part
        elif part.isdigit() and (40 <= int(part) <= 47 or 100 <= int(part) <= 107):
            ground = part
        else:
            rest |= {part}
    return colour, ground, rest


def shortened(part: str, spec: list[str]) -> str:
    """A colour's parameters: by its number in the table of 256 where it is exactly one of its cube or its greys."""
    if len(spec) == 4 and spec[0] == "2":
        number = number_of(tuple(map(int, spec[1:])))
        if number is not None:
            spec = ["5", str(number)]
    return ";".join([part, *spec])


@cache
def number_of(rgb: tuple[int, ...]) -> int | None:
    """The number of a colour in xterm's table of 256 (16 to 255), None where it is not one of them."""
    levels = (0, 95, 135, 175, 215, 255)
    if all(value in levels for value in rgb):
        red, green, blue = (levels.index(value) for value in rgb)
        return 16 + 36 * red + 6 * green + blue
    red, green, blue = rgb
    grey, rest = divmod(red - 8, 10)
    return 232 + grey if red == green == blue and not rest and 0 <= grey < 24 else None
