"""Write what a comparison says as lines: the verdict, its reasons, everything about one cell. No widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from apr_tui.style import STATES, Rows, Span, escape_untrusted, fit_text, wrap_spans
from core.model.stages import Place, place_text
from core.proof.verdict import Comparison, Verdict
from core.system.numbers import short
from core.trace.finding import OK
from core.trace.grid import divide
from core.trace.measures import NOISE_MULTIPLE, Difference, State
from core.trace.metrics import NUMBERS, SIZES

if TYPE_CHECKING:
    from apr_tui.view_models.pair import PairView

STYLE_OF = {Verdict.AGREE: "a", Verdict.H1: "a", Verdict.H3: "b", Verdict.H2: "bad", Verdict.INCONCLUSIVE: "watch",
            Verdict.NOT_COMPARABLE: "watch"}
GLYPH_OF = {Verdict.AGREE: ".", Verdict.H1: ".", Verdict.H3: ".", Verdict.H2: "X", Verdict.INCONCLUSIVE: "!",
            Verdict.NOT_COMPARABLE: "?"}
FIELDS = sorted(NUMBERS, key=lambda name: name == "count")  # which says least of a difference, last
COLUMNS = (("rel_l2", 10), ("inherited", 11), ("local", 9), ("floor", 9))
DISTANCES = ("rel_l2", "cosine", "max_abs", "inherited", "local", "floor")


def verdict_rows(found: Comparison, width: int) -> Rows:
    """The headline: glyph, word, first place, side, multiple of the floor; it wraps where it has no room."""
    spans: list[Span] = [(f" {GLYPH_OF[found.verdict]} {found.verdict}", STYLE_OF[found.verdict])]
    if found.first is None:
        return wrap_spans([*spans, (f": {found.meaning}", "text")], width)
    spans.append((f"  first {place_text(found.first)}", "title"))
    if found.token is not None:
        spans.append((f" token {found.token} ch {found.channel}", "text"))
    spans.append((f"  side {found.side or 'not decided'}", "text"))
    if found.broken:
        spans.append((f"  {found.broken}", "text"))
    elif found.multiple is not None:
        spans.append((f"  {short(found.measured)} = {short(found.multiple)} x floor", "text"))
    elif found.measured is not None:
        spans.append((f"  {short(found.measured)}", "text"))
    return wrap_spans(spans, width)


def is_downstream(difference: Difference) -> bool:
    """Say whether a cell differs only by what came in: its own operation stays within the bound of "same"."""
    local, floor = difference.local, difference.floor
    return (
        difference.state is State.DIFFERS
        and local is not None
        and floor is not None
        and local <= NOISE_MULTIPLE * floor
    )


def cause(found: Comparison | None, place: Place) -> str:
    """What is said of a cell in a few words: same, unclear, differs, downstream, or first and on which side."""
    difference = found.cells.get(place) if found else None
    if found is None or difference is None:
        return "not compared"
    if place == found.first:
        return f"first; {found.side} is wrong" if found.side else "first; side not decided"
    return "downstream" if is_downstream(difference) else difference.state


def layer_header() -> list[Span]:
    """Column names over layer_row."""
    numbers = "".join(f"{name:>{size}}" for name, size in COLUMNS)
    return [(f" {'stage':<13}{numbers}  ", "quiet"), ("cause", "quiet")]


def layer_row(view: PairView, place: Place, is_here: bool) -> list[Span]:
    """The distances of a stage in one line: in all, what came in, what happened here, the floor."""
    mark = view.mark(place)
    name = STATES[mark][1]
    difference = view.comparison.cells.get(place) if view.comparison else None
    label = "text+cursor" if is_here else "text"
    spans: list[Span] = [(f" {place[1]:<11}", label), (f"{' ' if mark == OK else mark} ", name)]
    for field, size in COLUMNS:
        number = getattr(difference, field) if difference else None
        spans.append((f"{short(number) if difference else mark:>{size}}", name if field == "rel_l2" else "text"))
    is_first = view.comparison is not None and place == view.comparison.first
    return [*spans, (f"  {cause(view.comparison, place)}", "bad" if is_first else "quiet")]


def cell_lines(view: PairView, place: Place, width: int) -> Rows:
    """The page of one cell: the distances, the statistics of both sides, the tokens of both sides."""
    difference = view.comparison.cells.get(place) if view.comparison else None
    word, name = STATES[view.mark(place)]
    word = difference.state if difference else word
    lines: Rows = [[], [(f" {place_text(place)} ", "title"), (f"{view.mark(place)} {word}", name)]]
    if difference is not None:
        lines += [[(f"   {field:<10}", "quiet"), (short(getattr(difference, field)), "text")] for field in DISTANCES]
        if difference.token is not None:
            where = f"token {difference.token} channel {difference.channel}"
            lines.append([("   worst at  ", "quiet"), (where, "text")])
    return [*lines, [], *side_lines(view, place, width)]


def distance_spans(view: PairView, place: Place) -> list[Span]:
    """What layer_row leaves out, in one line."""
    difference = view.comparison.cells.get(place) if view.comparison else None
    if difference is None:
        return []
    where = f"  at token {difference.token} channel {difference.channel}" if difference.token is not None else ""
    return [("   cosine ", "quiet"), (short(difference.cosine), "text"), ("  max_abs ", "quiet"),
            (short(difference.max_abs), "text"), (where, "quiet")]


def side_lines(view: PairView, place: Place, width: int) -> Rows:
    """The statistics of both sides, and each token's std."""
    cells = [view.sides[side].get(place) for side in ("A", "B")]
    a, b = (cell.at(view.scope) if cell is not None else None for cell in cells)
    lines = [_heading(f"scope {view.scope}")]
    for field in FIELDS:
        left, right = (getattr(stats, field) if stats is not None else None for stats in (a, b))
        both = short(divide(right, left)) if field in SIZES else ""
        lines.append([(f"   {field:<10}", "quiet"), (f"{short(left):>9}{short(right):>9}{both:>9}", "text")])
    return [*lines, [], *_token_lines(view, place, width)]


def _token_lines(view: PairView, place: Place, width: int) -> Rows:
    from core.trace.stats import TokenStats, std_T

    a, b = (view.sides[side].get(place) for side in ("A", "B"))
    if not (isinstance(a, TokenStats) and isinstance(b, TokenStats) and a.n_token == b.n_token):
        return [[("   no numbers per token on both sides", "quiet")]]
    tokens = view.comparison.a.tokens if view.comparison else ()
    lines = [_heading("std, token")]
    for i, (left, right) in enumerate(zip(std_T(a), std_T(b), strict=True)):
        position = a.first + i
        token = tokens[position] if position < len(tokens) else None
        text = f'  "{escape_untrusted(token.text)}"' if token is not None and token.text is not None else ""
        numbers = f"{short(float(left)):>9}{short(float(right)):>9}{short(divide(float(right), float(left))):>9}"
        text = fit_text(text, width - 13 - cell_len(numbers))
        lines.append([(f"   {position:<10}", "quiet"), (numbers, "text"), (text, "text")])
    return lines


def _heading(text: str) -> list[Span]:
    return [(f"   {text:<10}", "quiet"), (f"{'A':>9}", "a"), (f"{'B':>9}", "b"), (f"{'B / A':>9}", "quiet")]
