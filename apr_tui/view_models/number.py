"""A number cut to the columns of a grid cell."""

from __future__ import annotations

import math

from core.system.numbers import short
from core.trace.finding import ABSENT, OK, UNKNOWN

ROOM = 6  # columns of a number
MOST_SHADE = 4


def shade(multiple: float | None) -> int:
    """The shade of a cell by how many times its bound it is: one for each factor of 10, from 1 on; 0 within it."""
    if multiple is None or multiple <= 1:
        return 0
    return 1 + int(math.log10(multiple)) if math.isfinite(multiple) else MOST_SHADE


def shorten(number: float | None, mark: str) -> tuple[str, str]:
    """Text and mark of a cell: a cell without a number shows its mark alone."""
    if number is None:
        return (mark, mark) if mark in (ABSENT, UNKNOWN) else (ABSENT, mark)
    return short(number, ROOM), OK if mark == UNKNOWN else mark
