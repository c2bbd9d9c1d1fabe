"""A number cut to the columns of a grid cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.system.numbers import short
from core.trace.marks import ABSENT, OK, UNKNOWN

if TYPE_CHECKING:
    pass


ROOM = 6  # columns of a number


def shorten(number: float | None, mark: str) -> tuple[str, str]:
    """Text and mark of a cell: a cell without a number shows its mark alone."""
    if number is None:
        return (mark, mark) if mark in (ABSENT, UNKNOWN) else (ABSENT, mark)
    return short(number, ROOM), OK if mark == UNKNOWN else mark
