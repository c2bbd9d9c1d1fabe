"""Draw lines of text with the palette in use: glyph, word, then colour. It knows widths, not what is drawn.

Every Segment made here has a Style: Textual 8.2.8 crashes under NO_COLOR on one that has none.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import BUILTIN_THEMES, Theme

from apr_tui.palette import DARK, LIGHT, PALETTES, Palette
from core.system.safe_text import safe_text
from core.trace.finding import ABSENT, BAD, OK, UNKNOWN, WATCH

Span = tuple[str, str]  # text, name of a style
Rows = list[list[Span]]  # lines
STATES = {  # mark -> word, style
    OK: ("ok", "text"),
    WATCH: ("watch", "watch"),
    BAD: ("bad", "bad"),
    ABSENT: ("absent", "quiet"),
    UNKNOWN: ("not measured", "rule"),
}
_painted = [DARK]
_ASCII = {"…": "~", "─": "-", "│": "|", "·": "-", "█": "#", "░": ".", "→": "->", "≥": ">=", "×": "x"}
BLOCKS = " ▁▂▃▄▅▆▇█"
BLOCKS_ASCII = " .:-=+*%#"


@cache
def only_ascii() -> bool:
    """Say whether the terminal may get ASCII alone: APR_TUI_ASCII=1, the Linux console, or a locale without UTF-8.

    Python itself sets LC_CTYPE=C.UTF-8 under a C locale (PEP 538), so that value alone proves nothing.
    """
    forced = os.environ.get("APR_TUI_ASCII")
    if forced is not None:
        return forced not in ("", "0")
    if os.environ.get("TERM", "") in ("linux", "dumb") or os.environ.get("TERM", "").startswith("vt"):
        return True
    character = os.environ.get("LC_CTYPE", "")
    named = os.environ.get("LC_ALL") or ("" if character == "C.UTF-8" else character) or os.environ.get("LANG", "")
    return not re.search(r"utf-?8", named, re.IGNORECASE)


@cache
def has_16_colours() -> bool:
    """Say whether the terminal promises no more than 16 colours (by Rich's rule)."""
    if os.environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return False
    return not os.environ.get("TERM", "").endswith(("256color", "kitty", "direct"))


@cache
def style(name: str, palette: str | None = None) -> Style:
    """Return a style of the palette in use: NAME, NAME@3 on the third shade (0 is the ground), +cursor in reverse."""
    chosen = PALETTES[palette] if palette else _painted[0]
    base, _, more = name.partition("+")
    base, _, level = base.partition("@")
    shades = (chosen.ground, *chosen.shades)
    ground = shades[min(int(level or 0), len(shades) - 1)]
    spec = chosen.styles[base]
    found = Style.parse(spec if " on " in spec else f"{spec} on {ground}")
    return found + Style(reverse=not found.reverse, bold=True) if more else found


def paint(palette: Palette) -> None:
    """Use a palette from now on: a process has one terminal."""
    _painted[0] = palette
    style.cache_clear()


def painted() -> Palette:
    """The palette in use."""
    return _painted[0]


def textual_theme(palette: Palette) -> Theme:
    """The palette as Textual's own widgets take it."""
    text, prefix = palette.styles["text"].split()[0], "ansi_" if palette.is_ansi else ""
    names = dict(BUILTIN_THEMES["ansi-dark"].variables) if palette.is_ansi else {}  # widgets of Textual name them
    return Theme(f"apr-{palette.name}", primary=prefix + palette.styles["a"], background=prefix + palette.ground,
                 foreground=prefix + text, surface=prefix + palette.field, dark=palette is not LIGHT,
                 ansi=palette.is_ansi, variables=names)


def to_terminal_charset(text: str) -> str:
    """Our own words, in ASCII where the terminal has no more."""
    if not only_ascii() or text.isascii():
        return text
    return "".join(_ASCII.get(c, c if c.isascii() else "?") for c in text)


def escape_untrusted(text: str) -> str:
    """Text that comes from a file: no control codes, and escapes for what the terminal cannot show."""
    safe = safe_text(text)
    return safe.encode("ascii", "backslashreplace").decode() if only_ascii() else safe


def spans_width(spans: Iterable[Span]) -> int:
    """The cells that spans take."""
    return sum(cell_len(text) for text, _ in spans)


def fit(text: str, width: int) -> str:
    """Cut or pad to exactly width cells, wide characters measured; a cut shows."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, max(width - 1, 0)) + to_terminal_charset("…") if width > 0 else ""


def fit_text(text: str, width: int) -> str:
    """Cut text to width cells, unpadded."""
    return text if cell_len(text) <= width else fit(text, max(width, 1))


def strip(spans: Iterable[Span], width: int) -> Strip:
    """Turn spans into a line of exactly width cells; a cut shows."""
    spans = list(spans)
    if spans_width(spans) > width and "".join(text for text, _ in spans).rstrip():
        spans = crop(_without_end_blanks(spans), width)
    segments = [Segment(text, style(name)) for text, name in spans if text]
    line = Strip(segments)
    return line.adjust_cell_length(width, style("text")).simplify()


def _without_end_blanks(spans: list[Span]) -> list[Span]:
    while spans and not spans[-1][0].strip():
        spans.pop()
    return [*spans[:-1], (spans[-1][0].rstrip(), spans[-1][1])] if spans else []


def wrap_spans(spans: Sequence[Span], width: int, indent: int = 3) -> Rows:
    """Break between spans into lines of at most width cells; a longer span is broken at its spaces."""
    lines: Rows = [[]]
    for text, name in spans:
        room = width - spans_width(lines[-1])
        if lines[-1] and cell_len(text.rstrip()) > room:
            lines.append([(" " * indent, name)])
            text, room = text.lstrip(), width - indent
        first, *rest = wrap(text, max(room, 1)) if cell_len(text.rstrip()) > room else [text]
        lines[-1].append((first, name))
        lines += [[(" " * indent, name), (part, name)] for part in rest]
    return lines


def wrap_most(text: str, width: int, most: int) -> list[str]:
    """Break text into at most so many lines; a cut shows."""
    lines = wrap(text, width)
    return lines if len(lines) <= most else [*lines[:most - 1], fit(lines[most - 1] + " " * width, width)]


def wrap(text: str, width: int) -> list[str]:
    """Break text at spaces into lines of at most width cells; a longer word is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        while cell_len(word) > width:
            if line:
                lines.append(line)
                line = ""
            head = _head(word, width)
            lines.append(head)
            word = word[len(head):]
        if line and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line] if line or not lines else lines


def crop(spans: Iterable[Span], width: int) -> list[Span]:
    """Cut or pad spans to exactly width cells; a cut shows."""
    found: list[Span] = []
    for text, name in spans:
        if cell_len(text) > width:
            return [*found, (fit(text, width), name)]
        found.append((text, name))
        width -= cell_len(text)
    return [*found, (" " * width, "text")]


def crop_text(spans: Sequence[Span], width: int) -> list[Span]:
    """Cut spans to width cells, unpadded; a cut shows."""
    return list(spans) if spans_width(spans) <= width else crop(spans, width)


def block(share: float, level: int, tall: int, shows_zero: bool = False) -> str:
    """One line of an upright bar of tall lines, filled to share (0 to 1); level 0 is the lowest.

    What is more than 0 is never invisible, nor is 0 where that shows; X is no number.
    """
    blocks = BLOCKS_ASCII if only_ascii() else BLOCKS
    if not math.isfinite(share):
        return "X"
    steps = len(blocks) - 1
    least = 1 if level == 0 and (share > 0 or shows_zero) else 0
    return blocks[max(least, min(steps, round(min(1.0, share) * steps * tall - level * steps)))]


def bar(share: float, width: int) -> str:
    """A horizontal bar of width cells, filled to share (0 to 1)."""
    full = round(max(0.0, min(1.0, share)) * width)
    return to_terminal_charset("█") * full + " " * (width - full)


def changed(before: Sequence[Span], after: Sequence[Span], y: int, width: int) -> Region | None:
    """The part of a line that differs, from the first changed span to the last; None where nothing does."""
    if before == after:
        return None
    left, i, most = 0, 0, min(len(before), len(after))
    while i < most and before[i] == after[i]:
        left += cell_len(after[i][0])
        i += 1
    right, j = 0, 0
    total, was = spans_width(after), spans_width(before)
    if total == was and total <= width:
        while j < most - i and before[-1 - j] == after[-1 - j]:
            right += cell_len(after[-1 - j][0])
            j += 1
        return Region(left, y, total - left - right, 1)
    end = min(max(total, was), width)
    return Region(left, y, end - left, 1) if left < end else None


def _head(word: str, width: int) -> str:
    """The longest beginning that fits, one character at least; halved towards, for a word may have thousands."""
    fits = bisect_right(range(len(word) + 1), width, key=lambda i: cell_len(word[:i]))
    return word[:max(1, fits - 1)]
