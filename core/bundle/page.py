"""What a report says, without its form: sections of sentences, tables and one grid. page_html.py, page_markdown.py.

Every number is a text, as the folder's CSV or JSON has it: a report computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """How a cell or a verdict is to be seen; each has a glyph too, so that none needs a colour."""

    GOOD = "good"
    WATCH = "watch"
    BAD = "bad"
    ABSENT = "absent"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Link:
    """A text that leads to an anchor of the page, or to a file beside it."""

    text: str
    target: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A paragraph of its own."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list; numbered where the order says which to read first."""

    items: tuple[str, ...]
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. anchors: what each row is called, "" for none. marked: the row to look at, None for none."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Link, ...], ...]
    anchors: tuple[str, ...] = ()
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell: its short text and glyph, the number as the CSV has it, where it leads, how strongly it is shaded."""

    text: str
    glyph: str
    exact: str
    tone: Tone
    target: str
    shade: int = 0  # 0 to SHADES


@dataclass(frozen=True, slots=True)
class Grid:
    """Layers down, stages across; legend: what the glyphs mean.

    first: the target of the cell to look at, "" for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[GridCell, ...]], ...]
    legend: str
    first: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Words for a shell, or text as it is."""

    text: str


Part = Sentence | Bullets | Table | Grid | Code
SHADES = 5


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it. is_detail: left out of Markdown, which is for an issue or a mail."""

    title: str
    parts: tuple[Part, ...]
    anchor: str = ""
    is_detail: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A report: the verdict first. verdict: its word, "" for a trace; headline: one sentence, never cut."""

    title: str
    verdict: str
    tone: Tone
    headline: str
    sections: tuple[Section, ...]
