"""The help page, made from the key table."""

from __future__ import annotations

from collections.abc import Sequence

from apr_tui.keys import help_lines
from apr_tui.style import STATES, Rows, to_terminal_charset, wrap
from core.trace.finding import BAD

PAIR_MEANINGS = {
    "rel_l2": "|b - a| / |a| of the worst token",
    "A": "std of A at the scope",
    "B": "std of B at the scope",
    "ratio": "std of B over A: for reading, never a verdict",
    "inherited": "B against B's operation on A's inputs: what came in",
    "local": "B's operation on A's inputs, against A: what happened here",
    "cosine": "cosine of the worst token",
    "max_abs": "largest |b - a|",
}
CHECK_MEANINGS = {
    "nmse": "|stage - float64|^2 / |float64|^2 of its worst token",
    "sqnr_db": "-10 log10 of that: signal to quantisation noise",
    "floor": "the NMSE that the compute itself costs, measured",
    "multiple": "NMSE over the floor, of 1e-13 at least: bad above 100",
}


def help_build(screen: str, width: int) -> Rows:
    """The help page: the screen's keys, the others with where, marks, metrics."""
    own, others = help_lines(screen)
    lines: Rows = [[], [(f" Keys of this screen: {screen}", "title")], *_keys(own, width)]
    lines += [[], [(" Keys elsewhere", "title")], *_keys(others, width), [], [(" Marks", "title")]]
    meanings = {
        ".": "nothing odd (drawn as a blank before its number)",
        "!": "3 to 10 times the layer before, or more but usual for its column; below a tenth of it; in a comparison: "
             "near the noise floor",
        "X": "above 10 times the layer before and 3 times its column, NaN or Inf; in a comparison: differs; in a "
             "check: bad",
        "-": "the model or the source has no such number",
        "?": "not measured, or not yet",
    }
    for mark, (word, name) in (STATES | {BAD: ("spike", STATES[BAD][1])}).items():
        for i, part in enumerate(wrap(meanings[mark], max(width - 20, 20))):
            lines.append([(f"  {mark} {word:<13} " if i == 0 else " " * 18, name), (part, "text")])
    for what, meant in (("comparison", PAIR_MEANINGS), ("check", CHECK_MEANINGS)):
        lines += [[], [(f" Metrics of a {what}", "title")]]
        lines += [[(f"  {metric:<12}", "key"), (meaning, "text")] for metric, meaning in meant.items()]
    lines += [[], [(" Reading it", "title")]]
    for text in (
        "A spike inside one run is a hint: it says where to look. A difference that survives a check is a proof.",
        "Look at scope rest: if the spike is gone there, the first token carries it, and it looks like the model.",
        "Press x: every stage is recomputed in float64 from its own inputs. What is bad there is a bug of that stage, "
        "and no second model was needed.",
        "Then press g: the same model from the other format either agrees (H1: the model) or names the first place "
        "that differs (H2: a bug) or a declared numeric choice (H3).",
        "In a comparison, b proves the cause: B's values are put into A, and the logits come back from the place "
        "where they part onwards.",
        "Numbers taken in different ways are never compared (NOT_COMPARABLE says which fact, and how to repair it).",
    ):
        lines += [[(f"  {part}", "text")] for part in wrap(to_terminal_charset(text), max(width - 4, 20))]
    return lines


def _keys(rows: Sequence[tuple[str, str]], width: int) -> Rows:
    lines: Rows = []
    for keys, meaning in rows:
        for i, part in enumerate(wrap(meaning, max(width - 16, 20))):
            lines.append([(f"  {keys if i == 0 else '':<12}", "key"), (part, "text")])
    return lines
