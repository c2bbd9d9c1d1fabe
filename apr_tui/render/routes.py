"""Write what a router chose as lines: the experts of each token with their weights and margin, and the load of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_tui.style import Rows, Span, bar
from core.system.numbers import short

if TYPE_CHECKING:
    from core.trace.stats import TokenStats


def route_lines(cell: TokenStats, height: int | None = None) -> Rows:
    """A line a token: its margin, then its experts, the heaviest first; the nearest to a tie where not all fit."""
    routes = cell.routes
    assert routes is not None
    rows = list(range(len(routes.experts)))
    title = "margin of the logits, then expert:weight"
    if height is not None and len(rows) > height - 1:
        nearest = sorted(rows, key=lambda t: 0.0 if routes.margin is None else float(routes.margin[t]))
        rows = sorted(nearest[:max(height - 1, 1)])
        title = f"the {len(rows)} nearest to a tie of {len(routes.experts)} tokens: {title}"
    lines: Rows = [[(f" {title}", "quiet")]]
    for t in rows:
        margin = None if routes.margin is None else float(routes.margin[t])
        order = (-routes.weights[t]).argsort(kind="stable")
        chosen = " ".join(f"{routes.experts[t, k]}:{short(float(routes.weights[t, k]))}" for k in order)
        said = "-" if margin is None or margin < 0 else short(margin)
        lines.append([(f"{cell.first + t:>5} ", "quiet"), (f"{said:>7} ", "text"), (chosen, "text")])
    return lines


def load_lines(cell: TokenStats, most: int) -> Rows:
    """The experts with the most tokens, and how many have none."""
    routes = cell.routes
    assert routes is not None
    load = routes.load
    idle = int((load == 0).sum())
    order = (-load).argsort(kind="stable")[:max(most - 1, 1)]
    lines: Rows = [[(f" load: tokens of an expert; {idle} of {routes.n} idle", "quiet")]]
    for i in order:
        if load[i]:
            spans: list[Span] = [(f" {int(i):>5} ", "quiet"), (f"{int(load[i]):>5} ", "text"),
                                 (bar(float(load[i] / load.max()), 12), "a")]
            lines.append(spans)
    return lines
