"""Show a result in a notebook or a Python prompt: a sentence or two, the rows to look at, the whole table on demand.

A result says its sentences and its rows; nothing is measured or judged here. polars is imported when a table is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from core.system.numbers import short
from core.system.safe_text import safe_text

if TYPE_CHECKING:
    import polars as pl

ROWS = 12  # that are shown; to_polars has all
Row = Mapping[str, object]


class Notebook:
    """A result that says what it is (sentences, the verdict first) and has a table (rows, those to look at first)."""

    __slots__ = ()

    def sentences(self) -> Sequence[str]:
        """What was found, the most important first."""
        raise NotImplementedError

    def rows(self) -> Sequence[Row]:
        """The table behind it, of equal keys, in order of computation."""
        raise NotImplementedError

    def rows_shown(self) -> Sequence[Row]:
        """The rows that a person looks at first."""
        return self.rows()[:ROWS]

    def to_polars(self) -> pl.DataFrame:
        """The table as a data frame; None is null."""
        import polars as pl

        return pl.DataFrame([dict(row) for row in self.rows()], infer_schema_length=None, strict=False)

    def __repr__(self) -> str:
        return "\n".join(map(safe_text, self.sentences()))

    def _repr_markdown_(self) -> str:
        rows = [[_marked(cell) for cell in row] for row in _texts(self.rows_shown())]
        table = [f"| {' | '.join(row)} |" for row in rows]
        if rows:
            table.insert(1, "|" + "---|" * len(rows[0]))
        return "\n\n".join([*map(_marked, self.sentences()), "\n".join(table), *self._left()])

    def _repr_html_(self) -> str:
        first, *more = [escape(safe_text(s)) for s in self.sentences()]
        head, *rows = list(_texts(self.rows_shown())) or [[]]
        lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in rows)
        names = "".join(f"<th>{escape(name)}" for name in head)
        return (f"<p><b>{first}</b></p>{''.join(f'<p>{s}</p>' for s in more)}"
                f"<table><tr>{names}{lines}</table>{''.join(f'<p>{s}</p>' for s in self._left())}")

    def _left(self) -> list[str]:
        left = len(self.rows()) - len(self.rows_shown())
        return [f"{left} more rows: .to_polars()"] if left else []


def _texts(rows: Sequence[Row]) -> Iterable[list[str]]:
    """The heading and the cells of a table, as texts that steer nothing."""
    if rows:
        yield [safe_text(name) for name in rows[0]]
    for row in rows:
        yield [short(x) if isinstance(x, float) else "" if x is None else safe_text(str(x)) for x in row.values()]


def _marked(text: str) -> str:
    """Text in which Markdown finds nothing to obey."""
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in safe_text(text))
