"""Draw a report as one HTML file: no script, no network, dark and light, the same bytes for the same page."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from core.bundle.page import SHADES, Bullets, Code, Grid, GridCell, Link, Page, Part, Section, Sentence, Table
from core.system.safe_text import safe_text

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--quiet:#57606a;--line:#d0d7de;--bad:#b3261e;--watch:#7a4d00;--good:#14652a;
--hue:179,38,30}
@media(prefers-color-scheme:dark){:root{--bg:#15191e;--fg:#e6e9ec;--quiet:#9aa4ae;--line:#3a424b;--bad:#ff8a80;
--watch:#ffc864;--good:#7ddb95;--hue:255,110,96}}
:root{color-scheme:light dark}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
.verdict{font-size:1.9rem;font-weight:700}.bad{color:var(--bad)}.watch{color:var(--watch)}.good{color:var(--good)}
.headline::first-letter{text-transform:uppercase}.absent,.quiet,caption{color:var(--quiet)}
table{border-collapse:collapse;font:13px/1.5 ui-monospace,monospace;display:block;overflow-x:auto}
th,td{padding:.1rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--quiet);font-weight:400}td.bad{font-weight:700}caption{caption-side:bottom;text-align:left;white-space:pre-wrap}
td a{color:inherit;text-decoration:none}td a:hover{text-decoration:underline}
tr:target,tr.marked,td.first{outline:2px solid var(--watch);outline-offset:-2px}
pre{overflow-x:auto;border:1px solid var(--line);padding:.6rem}
""" + "".join(f"td.s{i}{{background:rgba(var(--hue),{0.09 * i:.2f})}}" for i in range(1, SHADES + 1)) + (
    f"td.s3,td.s4,td.s{SHADES}{{color:var(--fg)}}")  # on a strong shade a colour of its own is hard to read


def page_html(page: Page) -> str:
    """Write the page; every text of it is escaped."""
    head = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
            f"<title>{_text(f'{page.verdict} {page.title}'.strip())}</title><style>{STYLE}</style></head><body>"]
    if page.verdict:
        head.append(f'<p class="verdict {page.tone}">{_text(page.verdict)}</p>')
    head += [f"<h1>{_text(page.title)}</h1>", f'<p class="headline">{_text(page.headline)}</p>']
    return "\n".join([*head, *map(_section, page.sections), "</body></html>"]) + "\n"


def _section(section: Section) -> str:
    anchor = f' id="{_anchor(section.anchor)}"' if section.anchor else ""
    return "\n".join([f"<h2{anchor}>{_text(section.title)}</h2>", *map(_part, section.parts)])


def _part(part: Part) -> str:
    match part:
        case Sentence(text, tone):
            return f'<p class="{tone}">{_text(text)}</p>'
        case Bullets(items, numbered):
            kind = "ol" if numbered else "ul"
            return f"<{kind}>" + "".join(f"<li>{_text(item)}" for item in items) + f"</{kind}>"
        case Code(text):
            return f"<pre>{_text(text)}</pre>"
        case Table():
            return _table(part)
        case Grid():
            return _grid(part)


def _table(table: Table) -> str:
    rows = ["<tr>" + "".join(f"<th>{_text(name)}" for name in table.columns)]
    for i, row in enumerate(table.rows):
        anchor = f' id="{_anchor(table.anchors[i])}"' if table.anchors and table.anchors[i] else ""
        marked = ' class="marked"' if i == table.marked else ""
        rows.append(f"<tr{anchor}{marked}>" + "".join(f"<td>{_linked(cell)}" for cell in row))
    return "<table>" + "\n".join(rows) + "</table>"


def _grid(grid: Grid) -> str:
    rows = ["<tr><th>layer" + "".join(f"<th>{_text(name)}" for name in grid.columns)]
    rows += [f"<tr><th>{_text(label)}" + "".join(_cell(c, grid.first) for c in cells)
             for label, cells in grid.rows]
    return f"<table><caption>{_text(grid.legend)}</caption>" + "\n".join(rows) + "</table>"


def _cell(cell: GridCell, first: str) -> str:
    shade = (f" s{cell.shade}" if cell.shade else "") + (" first" if first and cell.target == first else "")
    glyph = f"{_text(cell.glyph)} " if cell.glyph.strip(". -") else ""
    shown = f'<data value="{_text(cell.exact)}">{glyph}{_text(cell.text)}</data>' if cell.exact else _text(cell.text)
    return f'<td class="{cell.tone}{shade}"><a href="#{_anchor(cell.target)}">{shown}</a>' if cell.target else (
        f'<td class="{cell.tone}{shade}">{shown}')


def _linked(cell: str | Link) -> str:
    if isinstance(cell, str):
        return _text(cell)
    return f'<a href="{quote(cell.target, safe="/#.")}">{_text(cell.text)}</a>'


def _text(text: str) -> str:
    return escape(safe_text(text))


def _anchor(name: str) -> str:
    return escape(safe_text(name), quote=True)
