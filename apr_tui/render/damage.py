"""Write a bill of damage as lines: its sums, tensors in order of cost, one tensor's rows, the recipe. No widgets."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from apr_tui.style import Rows, Span, bar, escape_untrusted, fit, to_terminal_charset, wrap
from apr_tui.view_models.damage import METRICS
from core.system.numbers import short

if TYPE_CHECKING:
    from apr_tui.view_models.damage import DamageView
    from core.damage.result import Damage, TensorDamage

NAME, BAR, MOST_ROWS = 32, 12, 40


def sum_lines(found: Damage, width: int) -> Rows:
    """What all tensors cost together, and by what it was found."""
    whole = "not measured, as there is no original" if found.whole is None else f"{short(found.whole)} nats a token"
    text = (f"sum of {len(found.tensors)} tensors {short(found.total)} nats a token by {found.method}, on "
            f"{found.text}; the whole file: {whole}; control (no swap): {found.control:g}")
    outside = [f"{t.name} {short(t.kl)} ({t.share:.1%})" for t in found.tensors if t.layer is None]
    text += f"; outside the layers: {', '.join(outside)}" if outside else ""
    return [[(f" {part}", "text")] for part in wrap(escape_untrusted(text), width - 2)[:3]]


def tensor_spans(view: DamageView, tensor: TensorDamage | None) -> list[Span]:
    """The tensor under the cursor."""
    if tensor is None:
        return [(" no quantised tensor here", "quiet")]
    return [(f" {escape_untrusted(tensor.name)} ", "title"), (f" {tensor.type}  {tensor.bytes:,} bytes", "text"),
            (f"  {short(tensor.kl)} nats", "a"), (f"  {tensor.share:.1%}", "text"),
            (f"  {view.rank[tensor.name]} of {len(view.ranked)} in cost", "quiet")]


def ranked_lines(view: DamageView, width: int) -> Rows:
    """Every tensor, the dearest first, with its bytes and a bar of its share."""
    lines: Rows = [[(f" {'':>4} {'tensor':<{NAME}} {'type':<8} {'bytes':>12} {'nats':>8} {'share':>6}", "quiet")]]
    most = view.ranked[0].share if view.ranked else 1.0
    for i, t in enumerate(view.ranked):
        name = "bad" if i == 0 else "text"
        spans: list[Span] = [(f" {i + 1:>4} ", "quiet"), (f"{fit(escape_untrusted(t.name), NAME)} ", name),
                             (f"{escape_untrusted(t.type):<8} {t.bytes:>12,} ", "text"), (f"{short(t.kl):>8} ", name),
                             (f"{t.share:>6.1%} ", "text")]
        room = min(width - 70, BAR)
        lines.append([*spans, (bar(t.share / most if most > 0 else 0.0, room), "a")] if room > 2 else spans)
    return lines


def row_lines(tensor: TensorDamage, width: int) -> Rows:
    """The rows of a tensor that cost most, with what the others cost together."""
    head: Rows = [[], [(f" {escape_untrusted(tensor.name)}", "title"), (f"  {tensor.type}  {tensor.bytes:,} bytes  "
                  f"{short(tensor.kl)} nats a token, {tensor.share:.1%} of all", "text")], []]
    if tensor.rows is None:
        return [*head, [(" this bill has no rows: a saved one keeps none, nor do exact swaps; r bills again", "quiet")]]
    ranked = sorted(enumerate(tensor.rows.tolist()), key=lambda row: -row[1])
    most, total = ranked[0][1], sum(kl for _, kl in ranked) or 1.0
    half = next(i for i, reached in enumerate(accumulate(kl for _, kl in ranked)) if reached >= total / 2) + 1
    lines: Rows = [[(f" {len(ranked)} rows, the dearest first; half of the cost is in {half} of them", "quiet")]]
    for row, kl in ranked[:MOST_ROWS]:
        lines.append([(f" row {row:>7} ", "quiet"), (f"{short(kl):>9} ", "text"), (f"{kl / total:>6.1%} ", "text"),
                      (bar(kl / most if most > 0 else 0.0, min(max(width - 32, 4), 40)), "a")])
    if len(ranked) > MOST_ROWS:
        rest = sum(kl for _, kl in ranked[MOST_ROWS:])
        lines.append([(f" {len(ranked) - MOST_ROWS} others {short(rest)} nats together", "quiet")])
    return [*head, *lines]


def recipe_page(found: Damage, width: int) -> Rows:
    """What to raise for a budget, as llama-quantize takes it, with what was measured; or why there is none."""
    from core.bundle.damage_document import recipe_lines

    told = recipe_lines(found) or ["No recipe was asked for: apr-tui damage FILE --original FILE --budget BYTES."]
    return [[], *([(f" {part}", "text")] for line in told for part in wrap(escape_untrusted(line), width - 2))]


def meaning(view: DamageView) -> str:
    """What the metric is."""
    return to_terminal_charset(f"{view.metric}: {METRICS[view.metric]}")
