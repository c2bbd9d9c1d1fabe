"""Show lines that may outgrow the screen: help, everything about a stage, the reasons of a verdict. Reading only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from apr_tui.keys import PAGE, bindings, help_lines, hint_spans
from apr_tui.paint import STATES, Lines, Rows, Span, foreign, plain, strip, wrap

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
Build = Callable[[int], Sequence[Sequence[Span]]]  # width -> lines


class Page(Widget):
    """The lines in view."""

    DEFAULT_CSS = "Page { height: 1fr; width: 1fr; }"

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.build = build
        self.lines: Sequence[Sequence[Span]] = ()
        self.top = 0

    def on_resize(self) -> None:
        """Break the lines again."""
        self.lines = self.build(self.size.width)
        self.scroll_by(0)

    def scroll_by(self, rows: int) -> None:
        """Scroll by rows, as far as there are lines."""
        self.top = max(min(self.top + rows, len(self.lines) - self.size.height), 0)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line (Textual calls this)."""
        return strip(self.lines[self.top + y] if self.top + y < len(self.lines) else (), self.size.width)


class PageScreen(Screen[None]):
    """A title over a page."""

    BINDINGS = bindings(PAGE)
    kind = PAGE

    def __init__(self, title: str, build: Build, planted: str | None = None) -> None:
        super().__init__()
        self.heading: list[Span] = [(f" PLANTED {foreign(planted)} ", "planted")] if planted else []
        self.heading.append((f" {title}", "title"))
        self.head, self.page, self.foot = Lines("title", 1), Page(build), Lines("foot", 1)

    def compose(self) -> ComposeResult:
        """Title, page, hints."""
        yield from (self.head, self.page, self.foot)

    def on_resize(self) -> None:
        """Show the title and the hints."""
        self.head.show([self.heading])
        self.call_after_refresh(self.show_lines)

    def show_lines(self) -> None:
        """Show the keys, and how much stands below."""
        hints = hint_spans(self.kind, self.app.size.width)
        below = len(self.page.lines) - self.page.top - self.page.size.height
        self.foot.show([[*hints, (f"  down: {below} more line{'s' * (below > 1)}" if below > 0 else "", "quiet")]])

    def scroll_by(self, rows: int) -> None:
        """Scroll, as far as there are lines."""
        self.page.scroll_by(rows)
        self.show_lines()

    def action_move(self, rows: int, columns: int) -> None:
        """Scroll a line."""
        self.scroll_by(rows)

    def action_page(self, direction: int) -> None:
        """Scroll a page."""
        self.scroll_by(direction * max(self.page.size.height - 1, 1))

    def action_end(self, direction: int) -> None:
        """To the first or the last line."""
        self.scroll_by(direction * 1_000_000)

    def action_back(self) -> None:
        """Leave."""
        self.dismiss()

    def action_quit(self) -> None:
        """Leave the console."""
        self.app.exit(0)


def help_build(width: int) -> Rows:
    """The help page: keys, marks, metrics."""
    lines: Rows = [[], [(" Keys", "title")]]
    for keys, meaning in help_lines():
        for i, part in enumerate(wrap(meaning, max(width - 16, 20))):
            lines.append([(f"  {keys if i == 0 else '':<12}", "key"), (part, "text")])
    lines += [[], [(" Marks", "title")]]
    meanings = {
        ".": "nothing odd (drawn as a blank before its number)",
        "!": "3 to 10 times the layer before, or below a tenth of it; in a comparison: near the noise floor",
        "X": "above 10 times the layer before, NaN or Inf; in a comparison: differs; in a check: bad",
        "-": "the model or the source has no such number",
        "?": "not measured, or not yet",
    }
    for mark, (word, name) in STATES.items():
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
        lines += [[(f"  {part}", "text")] for part in wrap(plain(text), max(width - 4, 20))]
    return lines
