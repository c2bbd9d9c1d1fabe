"""Write columns as CSV, and read them back with every cell checked. polars is imported when it is needed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.bundle.tables import NEEDED, TEXT, WHOLE
from core.system.errors import FileError
from core.system.limits import LAYERS
from core.system.safe_text import safe_text
from core.text.library import no_panic

if TYPE_CHECKING:
    import polars as pl

HEADING_SHOWN = 80  # characters
FORMULA = ("=", "+", "-", "@", "'")


def csv_text(columns: Mapping[str, Any], as_text: bool = False) -> str:
    """Write columns as CSV: shortest round-trip floats, an empty cell for None; NaN in an array is None.

    as_text: a number of a list stands as Python writes it, 1e-07 and nan where it is else 1e-7 and NaN.
    """
    import polars as pl

    series = []
    for name, column in columns.items():
        kind = pl.Int64 if name in WHOLE else pl.String if name in TEXT else pl.Float64
        if isinstance(column, np.ndarray):
            series.append(pl.Series(name, column, nan_to_null=True).cast(kind))
        elif as_text:
            series.append(pl.Series(name, [None if x is None else _cell(x) for x in column], dtype=pl.String))
        else:
            series.append(pl.Series(name, column, dtype=kind, strict=False))
    return pl.DataFrame(series).write_csv()


def _cell(x: object) -> str:
    """A text with nothing that a terminal obeys; ' before one that a spreadsheet would take for a formula."""
    if not isinstance(x, str):
        return str(x)
    return f"'{safe_text(x)}" if x.startswith(FORMULA) else safe_text(x)


def read_table(path: Path, data: bytes, names: Sequence[str]) -> pl.DataFrame:
    """Read a CSV's bytes with exactly these columns, or a FileError that names the path, line and column."""
    import polars as pl

    needed, heading = ", ".join(names), data.split(b"\n", 1)[0].rstrip(b"\r")
    if heading != ",".join(names).encode():  # before the table is read: a heading may have a million columns
        if not heading:
            raise FileError(f"{path} is not a CSV table: it has no heading. Trace again.")
        found = heading[:HEADING_SHOWN].decode(errors="replace").replace(",", ", ")
        raise FileError(f"{path} line 1: columns {found}; {needed} were needed. Trace again.")
    try:
        with no_panic():
            text = pl.read_csv(io.BytesIO(data), infer_schema=False)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise FileError(f"{path} is not a CSV table: {str(error).splitlines()[0]}. Trace again.") from error
    columns = []
    for name in names:
        kind = pl.Int64 if name in WHOLE else pl.String if name in TEXT else pl.Float64
        column = text[name].cast(kind, strict=False)
        wrong = (column.is_null() & text[name].is_not_null()) | (column.is_null() & pl.Series([name in NEEDED]))
        if kind == pl.Int64:
            wrong = wrong | (column < 0) | (column > LAYERS if name == "layer" else pl.Series([False]))
        lines = wrong.fill_null(False).arg_true()
        if len(lines):
            line = lines[0]
            what = "a whole number from 0" if kind == pl.Int64 else "a number" if kind == pl.Float64 else "a name"
            where = f"{path} line {line + 2}, column {name}"
            raise FileError(f"{where}: found {text[name][line]!r}, {what} was needed. Trace again.")
        columns.append(column)
    return pl.DataFrame(columns)
