"""Draw a report as Markdown, for an issue or a mail: sentences unwrapped, details left out."""

from __future__ import annotations

from collections.abc import Iterable

from core.bundle.page import Bullets, Code, Grid, GridCell, Link, Page, Part, Section, Sentence, Table, Tone
from core.system.safe_text import safe_text

STEERING = "\\`*_[]<>|#"


def page_markdown(page: Page) -> str:
    """Write the page; a text that would steer Markdown is escaped."""
    headline = f"**{plain(page.verdict)}**: {plain(page.headline)}" if page.verdict else plain(page.headline)
    parts = [f"### {plain(page.title)}", headline, *(_section(s) for s in page.sections if not s.is_detail)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """The text with nothing in it that Markdown or a terminal would obey."""
    return "".join("\\" + c if c in STEERING else c for c in safe_text(text))


def _section(section: Section) -> str:
    return "\n\n".join([f"**{plain(section.title)}**", *map(_part, section.parts)])


def _part(part: Part) -> str:
    match part:
        case Sentence(text, tone):
            return f"**{plain(text)}**" if tone is Tone.BAD else plain(text)
        case Bullets(items, numbered):
            return "\n".join(f"{f'{i}.' if numbered else '-'} {plain(item)}" for i, item in enumerate(items, 1))
        case Code(text):
            return "\n".join("    " + safe_text(line) for line in text.split("\n"))
        case Table():
            return _table(part)
        case Grid(columns, rows):
            lines = [_row(("layer", *columns)), _rule(1 + len(columns))]
            return "\n".join([*lines, *(_row((label, *map(_cell, cells))) for label, cells in rows)])


def _table(table: Table) -> str:
    rows = (tuple(c.text if isinstance(c, Link) else c for c in row) for row in table.rows)
    lines = [_row(map(plain, table.columns)), _rule(len(table.columns))]
    for i, row in enumerate(rows):
        lines.append(_row(f"**{plain(c)}**" if i == table.marked and c else plain(c) for c in row))
    return "\n".join(lines)


def _cell(cell: GridCell) -> str:
    return f"**{plain(cell.text)} {cell.glyph}**" if cell.glyph in "X!" else plain(cell.text)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(n: int) -> str:
    return "|" + "---:|" * n
