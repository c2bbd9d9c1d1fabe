"""Write what the trace's screen says under its grid: the finding's sentence, the facts of a cell. No widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from apr_tui.render.stage import sentence
from apr_tui.render.status import witness_span
from apr_tui.style import STATES, Rows, Span, crop, escape_untrusted, fit, to_terminal_charset, wrap_most
from core.model.stages import Place, place_text
from core.system.numbers import short
from core.trace.finding import BAD, OK

if TYPE_CHECKING:
    from apr_tui.view_models.trace import TraceView


def note_lines(view: TraceView, width: int) -> Rows:
    """The finding's sentence, or what stands in for it while there is none."""
    findings = view.findings
    if findings:
        finding = findings[view.finding]
        mark = view.mark(finding.place)
        name = STATES[mark][1] if mark != OK else "watch"
        count = f"{finding.strength} {view.finding + 1} of {len(findings)}"
        text = f"{mark} {sentence(finding)} ({count}, {finding.kind})"
        return [[(f" {part}", name)] for part in wrap_most(text, width - 2, 3)]
    if view.trace is not None:
        text = f" no finding at scope {view.scope}: no NaN, no ratio above {view.threshold:g} x"
        return [[(text, "quiet")]]
    place = view.first_bad()
    if place is not None:
        ratio = view.number(place, "ratio")
        is_ratio = ratio is not None and ratio > view.threshold
        what = f"{ratio:.1f} x layer {view.layer_before(place)}" if is_ratio else "NaN or Inf"
        return [[(f" X {place_text(place)}: {what}: the first spike so far", "bad")]]
    return []


def status_spans(view: TraceView, asked: str, width: int) -> list[Span]:
    """What was fed, what the model says next, and what the control run showed."""
    tokens, trace = view.tokens, view.trace
    count = f"{len(tokens)} token{'s' * (len(tokens) != 1)}" if tokens else "tokens unknown"
    spans: list[Span] = [(f" {fit(asked, min(cell_len(asked), width // 3))}", "text"),
                         (to_terminal_charset(f" · {count}"), "quiet")]
    right = witness_span(trace.observed_equals_unobserved if trace is not None else None)
    if view.generated:
        spans += [(to_terminal_charset(" → "), "quiet"), (escape_untrusted(view.generated), "a")]
    elif trace is not None and trace.top:
        spans.append((to_terminal_charset(" → next "), "quiet"))
        spans += [(escape_untrusted(f'"{n.text}" ' if n.text is not None else f"{n.id} "), "a") for n in trace.top]
    return [*crop(spans, width - len(right[0]) - 1), (" ", "text"), right]


def cell_spans(view: TraceView, place: Place, width: int) -> list[Span]:
    """Place, its number, ratio, and who carries it; what has no room is left out whole, as a cut channel is another."""
    mark = view.mark(place)
    word, name = STATES[mark]
    cell = view.cells.get(place)
    stats = cell.at(view.scope) if cell is not None else None
    if mark == BAD:  # a hint: nothing is proved bad
        word = "not finite" if stats is not None and (stats.nan or stats.inf) else "spike"
    spans: list[Span] = [(f" {place_text(place)} ", "title"), (f"{mark} {word} ", name)]
    if stats is None:
        return spans
    ratio = view.number(place, "ratio")
    times = [f"{short(ratio)} x layer {view.layer_before(place)}"] if ratio is not None else []
    facts = [f"std {short(stats.std)}", *times]
    if stats.absmax is not None:
        where = f" at token {stats.peak_token} ch {stats.peak_channel}" if stats.peak_token is not None else ""
        facts.append(f"|x| {short(stats.absmax)}{where}")
    if (stats.nan or 0) + (stats.inf or 0):
        facts.insert(0, f"{stats.nan} NaN {stats.inf} Inf")
    if view.metric not in ("std", "ratio", "absmax"):
        facts.insert(0, f"{view.metric} {short(view.number(place))}")
    spare, room = [f"std {short(stats.std)}", *times], width - sum(cell_len(text) for text, _ in spans)
    while spare and cell_len("  ".join(facts)) > room:
        facts.remove(spare.pop(0))
    return [*spans, ("  ".join(facts), "text")]
