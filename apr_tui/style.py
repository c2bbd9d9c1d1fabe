"""Draw lines of text with a fixed palette: glyph, word, then colour. It knows widths and styles, not what is drawn.

Every Segment made here has a Style: Textual 8.2.8 crashes under NO_COLOR on one that has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import cache

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import Theme

from core.system.safe_text import safe_text
from core.trace.marks import ABSENT, BAD, OK, UNKNOWN, WATCH

Span = tuple[str, str]  # text, name of a style
Rows = list[list[Span]]  # lines
STYLES = {
    "text": "#d0d0d0",
    "quiet": "#999999",
    "title": "#ffffff bold",
    "key": "#ffffff bold",
    "watch": "#F0E442",
    "bad": "#D55E00 bold",
    "a": "#56B4E9",
    "b": "#E69F00",
    "cursor": "#ffffff bold reverse",
    "rule": "#5f5f5f",
    "bar": "#5f87a0",
    "planted": "#D55E00 bold reverse",
}
STYLES_16 = {"bad": "#cc0000 bold", "planted": "#cc0000 bold reverse"}  # the nearest of 16 to its own would be watch's
STATES = {  # mark -> word, style
    OK: ("ok", "text"),
    WATCH: ("watch", "watch"),
    BAD: ("bad", "bad"),
    ABSENT: ("absent", "quiet"),
    UNKNOWN: ("not measured", "rule"),
}
THEME = Theme(
    "apr", primary="#56B4E9", background="#101014", foreground="#d0d0d0", surface="#202028", warning="#F0E442",
    error="#D55E00", dark=True,
)
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
def style(name: str) -> Style:
    """Return a style of the table; a second name after + adds reverse video (the cursor)."""
    base, _, more = name.partition("+")
    found = Style.parse((STYLES_16 if has_16_colours() else {}).get(base, STYLES[base]))
    return found + Style(reverse=True, bold=True) if more else found


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


def strip(spans: Iterable[Span], width: int) -> Strip:
    """Turn spans into a line of exactly width cells."""
    segments = [Segment(text, style(name)) for text, name in spans if text]
    line = Strip(segments)
    return line.adjust_cell_length(width, style("text")).simplify()


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
    for i in range(len(word), 0, -1):
        if cell_len(word[:i]) <= width:
            return word[:i]
    return word[:1]
