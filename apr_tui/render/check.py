"""Write what a check says as lines: the sentence under the grid, a layer's stages, everything about one. No widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apr_tui.render.stage import weight_lines
from apr_tui.render.verdict_card import error_rows
from apr_tui.style import STATES, Rows, Span, escape_untrusted, fit, fit_text, to_terminal_charset, wrap
from core.model.stages import Place, place_text, stage_named
from core.system.numbers import short
from core.trace.finding import OK

if TYPE_CHECKING:
    from apr_tui.session import WeightFacts
    from apr_tui.view_models.check import CheckView
    from core.trace.measures import LocalError

LOST = "no token is finite here: nothing to judge"
COLUMNS = (("nmse", 9), ("sqnr_db", 9), ("floor", 9), ("multiple", 10))


def note_lines(view: CheckView, at: int, width: int) -> Rows:
    """The sentence of the bad place number at, and the guess; else how far it is, or that it passed."""
    bad = view.bad()
    if view.check is None:
        if not bad:
            return [[(f" {len(view.errors)} stages judged, none bad so far" if view.errors else "", "quiet")]]
        return _said("X", _live(bad[0], view.errors[bad[0]]), "bad", width)
    if not bad:
        word, name = (". PASS", "a") if view.check.first is None else ("X FAIL", "bad")
        word, name = (f"? {view.check.verdict}", "watch") if view.check.doubt else (word, name)
        first, *rest = view.check.reasons
        indent = " " * len(word)
        return _said(word, first, name, width) + [line for text in rest for line in _said(indent, text, name, width)]
    at %= len(bad)
    sentence, *more = (*view.check.reasons_at(bad[at]), *view.check.unjudged)
    count = f" (bad stage {at + 1} of {len(bad)})" if len(bad) > 1 else ""
    lines = _said("X FAIL", sentence + count, "bad", width)
    return lines + [line for text in more for line in _said(" " * len("X FAIL"), text, "watch", width)]


def cell_spans(view: CheckView, place: Place) -> list[Span]:
    """The line about the cell under the cursor."""
    mark = view.mark(place)
    word, name = STATES[mark]
    spans: list[Span] = [(f" {place_text(place)} ", "title"), (f"{mark} {word} ", name)]
    error = view.errors.get(place)
    if error is None:
        return [*spans, (f" {LOST}", "quiet")] if place in view.unjudged else spans
    return [*spans, (" NMSE ", "quiet"), (f"{short(error.nmse)} = {short(error.nmse / error.limit)} x floor ", "text"),
            (f"{short(error.limit)}  token {error.token} ch {error.channel}", "text")]


def layer_header() -> list[Span]:
    """Column names over layer_row."""
    numbers = "".join(f"{name:>{size}}" for name, size in COLUMNS)
    return [(f" {'stage':<13}{numbers}  token:ch  computed from", "quiet")]


def layer_row(view: CheckView, place: Place, is_here: bool, width: int) -> list[Span]:
    """The local error of a stage in one line."""
    mark = view.mark(place)
    name = STATES[mark][1]
    error = view.errors.get(place)
    label = "text+cursor" if is_here else "text"
    spans: list[Span] = [(f" {place[1]:<11}", label), (f"{' ' if mark == OK else mark} ", name)]
    for metric, size in COLUMNS:
        spans.append((f"{short(view.number(place, metric)) if error else mark:>{size}}", name))
    where = f"{error.token}:{error.channel}" if error else ""
    inputs = " ".join(stage_named(place[1]).inputs) or "token ids"
    return [*spans, (f"  {fit(where, 8)}", "text"), (f"  {fit_text(inputs, max(width - 63, 1))}", "quiet")]


def stage_lines(view: CheckView, place: Place, weights: Sequence[WeightFacts], width: int) -> Rows:
    """Everything that the check knows of a stage."""
    error = view.errors.get(place)
    said = view.check.reasons_at(place) if view.check and place in view.bad() else ()
    by_itself = [line for text in said for line in _said("X", text, "bad", width)]
    if error is None:
        return [*by_itself, [], [(f" {LOST if place in view.unjudged else STATES[view.mark(place)][0]}", "quiet")]]
    lines = error_rows(place, error)
    if error.is_bad:
        lines += _said("X", _live(place, error), "bad", width)
    for text in (error.span_text if error.span else "", f"looks like this: {error.guess}" if error.guess else ""):
        lines += _said(" ", text, "watch", width) if text else []
    inputs = ", ".join(stage_named(place[1]).inputs) or "token ids"
    lines.append([(f"   recomputed in float64 from the run's own {inputs}", "quiet")])
    indent: list[Span] = [("   ", "text")]
    return [*lines, *(indent + line for line in weight_lines(weights, min(width - 4, 76)))]


def _live(place: Place, error: LocalError) -> str:
    return (f"{place_text(place)} is not what float64 makes of its own inputs: NMSE {short(error.nmse)}, "
            f"{short(error.nmse / error.limit)} x its floor")


def _said(mark: str, text: str, name: str, width: int) -> Rows:
    parts = wrap(to_terminal_charset(escape_untrusted(text)), max(width - len(mark) - 3, 10))
    return [[(f" {mark if i == 0 else ' ' * len(mark)} {part}", name)] for i, part in enumerate(parts)]
