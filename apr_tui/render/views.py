"""Draw what one layer holds: a stage's values as a histogram, its weights beside their siblings, a head's attention as
a heat map, the tokens that the layer would say. Pure; it runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apr_tui.style import (
    Rows,
    Span,
    bar,
    block,
    escape_untrusted,
    fit,
    fit_text,
    only_ascii,
)
from core.system.numbers import short

if TYPE_CHECKING:
    from core.audit.spread import Spread
    from core.trace.look_inside import Histogram, LayerView
    from core.trace.record import Token

HEAT, HEAT_ASCII = " ░▒▓█", " .+*#"
LABEL = 16  # columns of a token beside its row


def histogram_lines(found: Histogram | None, width: int, height: int) -> Rows:
    """The stage's values: how many (logarithmic) in each bin from the least to the largest, 0 marked."""
    if found is None:
        return [[(" the run keeps no values of this stage", "quiet")]]
    n = len(found.counts)
    wide, tall = max((width - 2) // n, 1), max(min(height - 3, 16), 1)
    step = math.ceil(n * wide / max(width - 2, 1)) if wide == 1 else 1  # bins a column on a narrow screen
    counts = [int(sum(found.counts[i:i + step])) for i in range(0, n, step)]
    most = math.log1p(max(counts, default=0)) or 1.0
    total = sum(counts)
    odd = f", {found.not_finite} not finite" if found.not_finite else ""
    lines: Rows = [[(f" {total} values{odd}; height: logarithm of the count, at most {max(counts)}; across: linear to "
                     f"{short(found.middle)}, then logarithmic", "quiet")]]
    for level in range(tall - 1, -1, -1):
        glyphs = (block(math.log1p(c) / most, level, tall) * wide for c in counts)
        lines.append([(" ", "text"), ("".join(glyphs), "a")])
    low, high, room = short(found.low), short(found.high), len(counts) * wide
    axis = [" "] * max(room, len(low) + len(high) + 1)
    axis[:len(low)], axis[-len(high):] = low, high
    if found.low < 0 < found.high:
        left, right = math.asinh(found.low / found.middle), math.asinh(found.high / found.middle)
        at = int(-left / (right - left) * room)
        if len(low) < at < len(axis) - len(high) - 1:
            axis[at] = "0"
    return [*lines, [(f" {''.join(axis)}", "quiet")]]


def spread_view(spreads: Sequence[tuple[str, Spread | None]], layer: int, width: int, height: int) -> Rows:
    """Each weight's level in every layer, this one's bright: what stands out has a wrong scale, or is no sibling."""
    if not spreads:
        return [[(" no weight makes this stage, or a bundle is shown", "quiet")]]
    lines: Rows = []
    for name, spread in spreads:
        lines.append([(f" {fit_text(escape_untrusted(name), width - 2)}", "text")])
        if spread is None or not spread.levels:
            lines.append([("   no other layer has it", "quiet")])
            continue
        most = max(level for _, level in spread.levels) or 1.0
        wide = max(min((width - 14) // len(spread.levels), 4), 1)
        tall = 3 if height >= 5 * len(spreads) else 1
        for row in range(tall - 1, -1, -1):
            spans: list[Span] = [(f"{short(most) if row == tall - 1 else '':>10} ", "quiet")]
            for at, level in spread.levels:
                glyph = block(level / most, row, tall) * max(wide - (wide > 2), 1) + " " * (wide > 2)
                spans.append((glyph, "title" if at == layer else "bar"))
            lines.append(spans)
        z = ""
        if spread.z is not None:
            z = f", {abs(spread.z):.1f} robust deviations {'above' if spread.z > 0 else 'below'}"
        lines.append([(f"   rms {short(spread.level)} in layer {layer}; the others {short(spread.least)} to "
                       f"{short(spread.largest)}, middle {short(spread.middle)}{z}", "quiet")])
    return lines[:height]


def attention_lines(
    view: LayerView, head: int, tokens: Sequence[Token], width: int, height: int,
) -> Rows:
    """One head: rows ask, columns are asked, the last ones where not all fit; then whom the last token asks most."""
    if view.attention is None:
        return [[(" no attention with queries and keys in this layer", "quiet")]]
    shares = view.attention[head]
    n, wide = len(shares), 2
    rows, columns = max(min(n, height - 3), 1), max(min(n, (width - LABEL - 2) // wide), 1)
    cut = f", the last {rows} x {columns} of {n} tokens" if rows < n or columns < n else ""
    lines: Rows = [[(f" head {head} of {len(view.attention)}{cut}", "title"), ("  [ ] other heads", "quiet")]]
    heat = HEAT_ASCII if only_ascii() else HEAT
    for i in range(n - rows, n):
        cells = "".join(heat[min(math.ceil(float(s) * (len(heat) - 1) - 0.02), len(heat) - 1)] * wide
                        for s in shares[i, n - columns:])
        lines.append([(f" {i:>4} {fit(_text(tokens, i), LABEL - 7)} ", "quiet"), (cells, "a")])
    last = sorted(range(n), key=lambda j: -float(shares[-1, j]))[:4]
    asked = "  ".join(f"{j} {_text(tokens, j)} {float(shares[-1, j]):.0%}" for j in last)
    return [*lines, [(f" the last token attends to: {fit_text(asked, width - 30)}", "text")]]


def lens_lines(view: LayerView, width: int) -> Rows:
    """The likeliest next tokens if the model stopped after this layer: final norm and head on its output."""
    lines: Rows = [[(f" if the model stopped after layer {view.layer} (final norm and head on its output):", "quiet")]]
    most = max((t.logit for t in view.lens), default=1.0)
    least = min((t.logit for t in view.lens), default=0.0)
    for token in view.lens:
        share = (token.logit - least) / (most - least) if most > least else 1.0
        text = escape_untrusted(f'"{token.text}"' if token.text is not None else "")
        lines.append([(f"   {token.logit:>9.4f} ", "text"), (bar(share, 12), "a"), (f" {token.id:>6} ", "quiet"),
                      (fit_text(text, width - 34), "text")])
    return lines


def _text(tokens: Sequence[Token], i: int) -> str:
    text = tokens[i].text if i < len(tokens) else None
    return escape_untrusted(f'"{text}"') if text is not None else ""
