"""Write what is known about a stage as lines: statistics, tokens, channels, weights, why it grew. No widgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from apr_tui.render.routes import load_lines, route_lines
from apr_tui.style import STATES, Rows, Span, bar, escape_untrusted, fit_text, spans_width, to_terminal_charset, wrap
from core.model.stages import Place, place_text, stage_named
from core.system.numbers import short
from core.trace.finding import OK, WATCH
from core.trace.metrics import NUMBERS

if TYPE_CHECKING:
    from apr_tui.session import WeightFacts
    from apr_tui.view_models.trace import TraceView
    from core.trace.finding import Finding
    from core.trace.stats import Stats

SpreadLines = Callable[[str, int], Rows]  # of a weight's name, so wide
NAME, MARK = 11, 2
COLUMNS = (  # field of Stats, width, least width of the screen that shows it
    ("count", 9, 100), ("std", 7, 0), ("mean", 8, 0), ("min", 8, 0), ("max", 8, 0), ("absmax", 8, 110), ("l2", 7, 0),
    ("zero", 6, 0), ("nan", 4, 60), ("inf", 4, 60),
)


def table_header(width: int) -> list[Span]:
    """Column names over table_row."""
    spans: list[Span] = [(f" {'stage':<{NAME + MARK}}", "quiet")]
    spans += [(f"{name:>{size}}", "quiet") for name, size, least in COLUMNS if width >= least]
    return [*spans, ("  peak t:ch", "quiet")]


def table_row(view: TraceView, place: Place, is_here: bool, width: int) -> list[Span]:
    """All statistics of a stage in one line."""
    mark = view.mark(place)
    cell = view.cells.get(place)
    stats: Stats | None = cell.at(view.scope) if cell is not None else None
    name = STATES[mark][1]
    label = "text+cursor" if is_here else "text"
    spans: list[Span] = [(f" {place[1]:<{NAME}}", label), (f"{' ' if mark == OK else mark} ", name)]
    for field, size, least in COLUMNS:
        if width >= least:
            number = getattr(stats, field) if stats is not None else None
            text = short(number, min(size - 1, 7)) if number is not None else mark if mark in "-?" else "-"
            odd = field in ("nan", "inf") and number
            tone = "bad" if odd else name if field == "std" else "text" if number else "quiet"
            spans.append((f"{text:>{size}}", tone))
    if stats is not None and stats.peak_token is not None:
        spans.append((f"  {stats.peak_token}:{stats.peak_channel}", "text"))
    return spans


def token_lines(view: TraceView, place: Place, width: int, height: int | None = None) -> Rows:
    """A bar for each token: its std at this stage, beside its id and text; the largest ones where not all fit.

    Of a router: the experts that each token has.
    """
    from core.trace.stats import TokenStats, std_T

    cell = view.cells.get(place)
    if not isinstance(cell, TokenStats):
        return [[(" no numbers per token" if cell is not None else " not measured", "quiet")]]
    if cell.routes is not None:
        return route_lines(cell, height)
    spread = std_T(cell)
    rows = list(range(len(spread)))
    finite_T = cell.finite_T
    title = "std of each token"
    if height is not None and len(rows) > height - 1:
        rows = sorted(sorted(rows, key=lambda i: -_rank(float(spread[i])))[:max(height - 1, 1)])
        title = f"the {len(rows)} largest of {len(spread)} tokens"
    largest = max((float(s) for s in spread if math.isfinite(s)), default=0.0)
    lines: Rows = [[(f" {title}", "quiet")]]
    size = max(min(24, width - 31), 4)
    for i in rows:
        std, position = float(spread[i]), cell.first + i
        token = view.tokens[position] if position < len(view.tokens) else None
        is_bad = bool(finite_T[i] < cell.width)
        share = std / largest if largest and math.isfinite(std) else 0.0
        text = fit_text(f'"{escape_untrusted(token.text)}"' if token and token.text is not None else "",
                        width - 22 - size)
        lines.append([
            (f"{position:>5} {token.id if token else '':>6} ", "quiet"),
            (f"{short(std) if math.isfinite(std) else '-':>7} ", "bad" if is_bad else "text"),
            (bar(share, size), "b" if share > 0.5 and len(spread) > 1 else "a"), (f" {text}", "text"),
        ])
    return lines


def channel_lines(view: TraceView, place: Place, most: int) -> Rows:
    """The channels with the largest |x|; of a router, the load of its experts."""
    from core.trace.stats import TokenStats

    cell = view.cells.get(place)
    if isinstance(cell, TokenStats) and cell.routes is not None:
        return load_lines(cell, most)
    if not isinstance(cell, TokenStats) or not cell.top:
        return []
    lines: Rows = [[("largest channels", "quiet")]]
    for channel, token, number in cell.top[:most]:
        is_massive = cell.massive is not None and any(p[:2] == (token, channel) for p in cell.massive.places)
        lines.append([
            (f"{short(number):>8}", "text"), (f"  channel {channel}  token {token}", "quiet"),
            ("  massive" if is_massive else "", "watch"),
        ])
    return lines


def why_lines(view: TraceView, place: Place, width: int) -> Rows:
    """For a product: which factors met where it peaks."""
    from core.trace.stats import TokenStats

    cell = view.cells.get(place)
    if not isinstance(cell, TokenStats) or cell.factors is None:
        return []
    found = cell.factors
    left, right = (*stage_named(place[1]).inputs, "left", "right")[:2]
    how = "not known" if found.correlation is None else f"{found.correlation:.2f}"
    text = (f"why it grew: {left} {short(found.left)} x {right} {short(found.right)} at token {found.token} "
            f"channel {found.channel}; correlation of the two {how}")
    return [[(part, "text")] for part in wrap(text, width)]


def weight_lines(weights: Sequence[WeightFacts], width: int, spread: SpreadLines = lambda name, width: []) -> Rows:
    """Name, quant type and shape of the weights behind the stage, each over its level beside its siblings'."""
    lines: Rows = []
    for name, quant, shape in weights:
        size = "x".join(map(str, shape))
        room = width - len(quant) - len(size) - 4
        lines.append([(fit_text(escape_untrusted(name), room), "text"), (f"  {escape_untrusted(quant)}", "a"),
                      (f"  {size}", "quiet")])
        lines += spread(name, width)
    return lines


def finding_lines(view: TraceView, layer: int | None, stage: str | None, width: int) -> Rows:
    """Sentences of the findings at the place, then of the layer's others."""
    found = [f for f in view.findings if f.layer == layer and (stage is None or f.stage == stage)]
    lines: Rows = []
    for finding in found:
        mark = view.mark(finding.place)
        text = f"{mark if mark != OK else WATCH} {sentence(finding)}"
        lines += [[(f" {part}", STATES[mark if mark != OK else WATCH][1])] for part in wrap(text, width - 2)]
    return lines


def sentence(finding: Finding) -> str:
    """A finding's sentence, with its layer in front of the stage that it starts with."""
    place, text = place_text(finding.place), escape_untrusted(finding.sentence)
    return place + text.removeprefix(finding.stage) if text.startswith(finding.stage) else f"{place}: {text}"


def everything(
    view: TraceView, place: Place, weights: Callable[[Place], Sequence[WeightFacts]], width: int,
    spread: SpreadLines = lambda name, width: [],
) -> Rows:
    """The page of one stage: nothing left out."""
    cell = view.cells.get(place)
    stats: Any = cell.at(view.scope) if cell is not None else None
    lines: Rows = [[], [(f" {place_text(place)}", "title"), (f"  at scope {view.scope}", "quiet")]]
    for field in NUMBERS:
        number = getattr(stats, field) if stats is not None else None
        text = f"{number:.8g}" if isinstance(number, float) else short(number)
        lines.append([(f"   {field:<8}", "quiet"), (text, "text")])
    ratio = view.number(place, "ratio")
    if ratio is not None:
        lines.append([("   ratio   ", "quiet"), (f"{ratio:.4g} x layer {view.layer_before(place)}", "text")])
    for name, token, channel in (("peak", "peak_token", "peak_channel"), ("nan at", "nan_token", "nan_channel")):
        if stats is not None and getattr(stats, token) is not None:
            where = f"token {getattr(stats, token)} channel {getattr(stats, channel)}"
            lines.append([(f"   {name:<8}", "quiet"), (where, "text")])
    indent: list[Span] = [("   ", "text")]
    for part in (
        finding_lines(view, place[0], place[1], width - 2),
        [indent + line for line in why_lines(view, place, width - 4)],
        [indent + line for line in channel_lines(view, place, 8)],
        [indent + line for line in weight_lines(weights(place), min(width - 4, 76), spread)],
        token_lines(view, place, width),
    ):
        if part:
            lines += [[], *part]
    return lines


def beside(left: Rows, right: Rows, width: int, height: int) -> Rows:
    """Two columns of lines; the left one is width wide."""
    lines: Rows = []
    right = clip(right, height)
    for i in range(height):
        spans = left[i] if i < len(left) else []
        gap = " " * max(width - spans_width(spans), 0)
        lines.append([*spans, (gap, "text"), *(right[i] if i < len(right) else [])])
    return lines


def clip(lines: Rows, height: int) -> Rows:
    """The lines that fit; the last one counts those that do not."""
    if len(lines) <= height or height < 1:
        return lines[:height]
    more = len(lines) - height + 1
    return [*lines[:height - 1], [(to_terminal_charset(f" … {more} more lines: enter"), "quiet")]]


def rule(text: str, width: int) -> list[Span]:
    """A line across with a title in it."""
    return [(to_terminal_charset("─ "), "rule"), (text, "title"),
            (" " + to_terminal_charset("─") * max(width - cell_len(text) - 3, 0), "rule")]


def _rank(x: float) -> float:
    return x if math.isfinite(x) else math.inf
