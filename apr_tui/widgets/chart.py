"""Draw one figure over the steps of a run as a small chart: braille dots, or ASCII. Pure; it knows no run.

A column of dots stands for one or several steps and spans their least and largest value, so no spike is averaged away.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from apr_tui.style import Rows, Span, only_ascii
from apr_tui.view_models.number import shorten
from core.trace.finding import OK

LABEL = 7           # columns of the axis' numbers
CLIP = 4.0          # times the median: above it a value is drawn as an arrow on the top line, where a chart clips
FIRST_STEPS = 32    # the axis holds so many steps at first, then twice as many, up to the plan's
MARK, ARROW = "o", "^"
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell: by column, from the top
BRAILLE = 0x2800
ASCII_LEVELS = "'-."  # one dot of three a character

Point = tuple[float, float]   # step, value
Range = tuple[float, float]   # low, high


@dataclass(frozen=True, slots=True)
class Canvas:
    """Dots a character: columns and rows."""

    across: int
    down: int


def canvas() -> Canvas:
    """What the terminal can show in one character."""
    return Canvas(1, len(ASCII_LEVELS)) if only_ascii() else Canvas(2, 4)


def axis_steps(n_done: int, n_planned: int) -> int:
    """Steps on the axis: it doubles now and then, so that a new step moves no old dot."""
    steps = FIRST_STEPS
    while steps < n_done:
        steps *= 2
    return max(1, min(steps, max(n_planned, n_done)))


def value_range(values: Sequence[float], clips: bool) -> Range | None:
    """The axis' two ends, round numbers so that they seldom move; None where nothing finite was measured."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    far = CLIP * statistics.median(finite) if clips else math.inf
    finite = [v for v in finite if v <= far] or finite
    low, high = min(finite), max(finite)
    if high <= low:
        gap = abs(low) or 1.0
        low, high = low - gap / 2, low + gap / 2
    unit = 10 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / unit + 1e-9) * unit, math.ceil(high / unit - 1e-9) * unit


def chart(
    points: Sequence[Point], marks: Sequence[Point], n_step: int, width: int, height: int, clips: bool = False,
) -> Rows:
    """Draw points as a line and marks over it: height lines of width columns, the axis' numbers at the left."""
    shape, room = canvas(), max(width - LABEL, 1)
    ends = value_range([v for _, v in (*points, *marks)], clips)
    if ends is None:
        return [[(" " * width, "quiet")] for _ in range(height)]
    columns = _columns(points, n_step, room * shape.across)
    grid = _dots(columns, ends, room, height, shape)
    lines = [[_glyph(bits), "a"] for row in grid for bits in row]
    cells = [lines[y * room:(y + 1) * room] for y in range(height)]
    for x, (_, high) in columns.items():
        if high > ends[1]:
            cells[0][x // shape.across] = [ARROW, "watch"]
    for step, value in marks:
        if math.isfinite(value):
            y = height - 1 - min(int(_share(value, ends) * height), height - 1)
            cells[y][min(int(step / n_step * room), room - 1)] = [MARK, "b"]
    return [_axis(y, height, ends) + _joined(row) for y, row in enumerate(cells)]


def _columns(points: Sequence[Point], n_step: int, n_column: int) -> dict[int, Range]:
    """Least and largest value of each column of dots; a column between two steps gets what lies between them."""
    found: dict[int, Range] = {}
    for step, value in points:
        if math.isfinite(value):
            x = min(int(step / n_step * n_column), n_column - 1)
            low, high = found.get(x, (value, value))
            found[x] = min(low, value), max(high, value)
    known = sorted(found)
    for left, right in pairwise(known):
        a, b = sum(found[left]) / 2, sum(found[right]) / 2
        for x in range(left + 1, right):
            value = a + (b - a) * (x - left) / (right - left)
            found[x] = value, value
    return dict(sorted(found.items()))


def _dots(columns: dict[int, Range], ends: Range, room: int, height: int, shape: Canvas) -> list[list[int]]:
    """Set the dots: bits of a braille cell, or of the ASCII levels; a column joins the one before without a gap."""
    rows, grid = height * shape.down, [[0] * room for _ in range(height)]
    before: Range | None = None
    last = -2
    for x, (low, high) in columns.items():
        bottom, top = (min(int(_share(v, ends) * rows), rows - 1) for v in (low, high))
        drawn = bottom, top
        if before is not None and last == x - 1:
            drawn = min(bottom, int(before[1]) + 1), max(top, int(before[0]) - 1)
        for level in range(int(drawn[0]), int(drawn[1]) + 1):
            y, inside = divmod(rows - 1 - level, shape.down)
            grid[y][x // shape.across] |= DOTS[x % shape.across][inside]
        before, last = (bottom, top), x
    return grid


def _share(value: float, ends: Range) -> float:
    return max(0.0, min(1.0, (value - ends[0]) / (ends[1] - ends[0])))


def _glyph(bits: int) -> str:
    if not bits:
        return " "
    if not only_ascii():
        return chr(BRAILLE + bits)
    levels = [c for c, bit in zip(ASCII_LEVELS, DOTS[0], strict=False) if bits & bit]
    return levels[0] if len(levels) == 1 else "|" if len(levels) == len(ASCII_LEVELS) else ":"


def _axis(y: int, height: int, ends: Range) -> list[Span]:
    number = ends[1] if y == 0 else ends[0] if y == height - 1 else None
    text = "" if number is None else f"{number:g}"
    if len(text) >= LABEL:
        text = shorten(number, OK)[0]
    return [(f"{text:>{LABEL - 1}} ", "quiet")]


def _joined(cells: Sequence[Sequence[str]]) -> list[Span]:
    """Join neighbours of one style."""
    spans: list[Span] = []
    for text, name in cells:
        if spans and (spans[-1][1] == name or text == " "):
            spans[-1] = spans[-1][0] + text, spans[-1][1]
        else:
            spans.append((text, name))
    return spans
