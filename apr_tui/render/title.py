"""Fit a screen's first line to its width: a planted bug, names that give way, what stands at the right. No widgets."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from apr_tui.style import Span, escape_untrusted, fit, spans_width


def planted_spans(planted: str | None) -> list[Span]:
    """The badge of a bug that was planted on purpose; nothing where there is none."""
    return [(f" PLANTED {escape_untrusted(planted)} ", "planted")] if planted else []


def fit_names(names: Sequence[str], room: int, least: int) -> list[str]:
    """Cut foreign names so that they share room cells equally; least cells of each are always shown."""
    safe = [escape_untrusted(name) for name in names]
    return [fit(name, max(min(cell_len(name), room // len(safe)), least)) for name in safe]


def insert_right(spans: Sequence[Span], text: str, room_of: int = 2) -> list[Span]:
    """Put text before what push_right put at the end of a line, where the blanks between leave room for it."""
    last, name = spans[-1]
    blanks = len(last) - len(last.lstrip(" "))
    if not text or blanks < cell_len(text) + 2 * room_of:
        return list(spans)
    return [*spans[:-1], (" " * (blanks - cell_len(text) - room_of), name), (text, "quiet"), (" " * room_of, name),
            (last[blanks:], name)]


def push_right(spans: Sequence[Span], right: str, width: int, name: str = "quiet") -> list[Span]:
    """Put text at the right end of a line, or right behind what stands there."""
    return [*spans, (" " * max(width - spans_width(spans) - cell_len(right), 0) + right, name)]
