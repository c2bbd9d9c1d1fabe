"""The page of a bisection: its sentence and the ladder of grafts as bars, with export. Reading and writing only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apr_tui.keys import LADDER_KEYS, bindings
from apr_tui.render.stage import beside
from apr_tui.render.status import export_note
from apr_tui.screens.page import PageScreen
from apr_tui.style import Rows, bar, escape_untrusted, to_terminal_charset, wrap
from apr_tui.workers.run import Frame
from core.model.stages import place_order, place_text
from core.proof.verdict import RECOVERED, Bisection, LayerBisection, PatchResult
from core.system.numbers import short

if TYPE_CHECKING:
    from apr_tui.screens.compare import CompareScreen

BAR = 10
COLUMN = 40  # of a list of rungs
LEAST = -9.99  # a graft may also take the logits further away; beyond this only that is said


class LadderScreen(PageScreen):
    """The ladder over the comparison; e writes the whole bisection, the reproducer too."""

    BINDINGS = bindings(LADDER_KEYS)
    kind = LADDER_KEYS

    def __init__(self, under: CompareScreen, found: Bisection) -> None:
        title = f"A {escape_untrusted(under.a.name)}  B {escape_untrusted(under.b.name)}  grafts of B into A"
        super().__init__(title, lambda width: ladder_lines(found, width), under.planted)
        self.under, self.found = under, found
        self.note: tuple[str, str] | None = None

    def show_lines(self) -> None:
        """Draw the message, or what runs, over the hints."""
        super().show_lines()
        text, name = self.note or ("", "text")
        notes: Rows = [[(f" {part}", name)] for part in wrap(text, self.app.size.width - 2)] if text else []
        self.foot.show([*notes, *self.foot.lines[-1:]])

    # what the console asks of a screen that runs a job

    def show_frame(self, frame: Frame) -> None:
        """An export measures nothing."""
        self.show_lines()

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the end of an export."""
        self.note = export_note(result, error)
        self.show_lines()

    def say(self, text: str, name: str = "text") -> None:
        """Put a message over the hints."""
        self.note = (text, name)
        self.show_lines()

    def command(self) -> str:
        """The command that gives this ladder without a screen."""
        return self.under.command()

    # actions

    def action_export(self) -> None:
        """Write the comparison, the ladder and the reproducer."""
        out = self.console.get_session().default_out(self.found.comparison.a)
        self.console.exports.ask(self, self.under.request, self.found, out.with_name(f"{out.name}-bisect"))

    def action_back(self) -> None:
        """Leave; but not while it writes, or nobody would see how that ends."""
        if self.console.exports.writing is not self:
            self.dismiss()


def ladder_lines(found: Bisection, width: int) -> Rows:
    """The sentence, then the rungs: layers, then the stages of the layer where the cause lies."""
    lines: Rows = [*([(f" {part}", "text")]
                     for part in wrap(to_terminal_charset(escape_untrusted(found.sentence)), width - 2))]
    ladder = found.ladder
    if ladder is None:
        return [*lines, [], [(" no graft was tried: no cell differs", "quiet")]]
    lines += [[], *([(f" {part}", "quiet")] for part in wrap(_sentence(ladder), width - 2))]
    groups = (
        ("halving", [r for r in ladder.rungs if r.place[1] == "output"]),
        ("whole model", [r for r in ladder.rungs if r.place[0] is None]),
        (f"in layer {ladder.entry}", [r for r in ladder.rungs if r.place[0] == ladder.entry is not None]),
    )
    lists = [_rungs(title, rungs, ladder) for title, rungs in groups if rungs]
    if len(lists) == 2 and width >= 2 * COLUMN:
        return [*lines, [], *beside(lists[0], lists[1], COLUMN, max(map(len, lists)))]
    return lines + [line for one in lists for line in [[], *one]]


def _rungs(title: str, rungs: Sequence[PatchResult], ladder: LayerBisection) -> Rows:
    best = ladder.best()
    lines: Rows = [[(f" {title:<13}", "title"), (f"{'back':>6} {'':<{BAR}} KL left", "quiet")]]
    for rung in sorted(rungs, key=lambda r: place_order(r.place)):
        is_cause = best is not None and rung.place == best.place and rung.recovered >= RECOVERED
        name = "b" if is_cause else "text"
        finite = math.isfinite(rung.recovered)
        share = "-" if not finite else f"{rung.recovered:.0%}" if rung.recovered > LEAST else f"<{LEAST:.0%}"
        lines.append([
            (f" {place_text(rung.place):<13}{share:>6} ", name),
            (bar(rung.recovered if finite else 0.0, BAR), "b" if is_cause else "bar"),
            (f" {short(rung.kl, 6)}", "text"), (" <" if is_cause else "", "b"),
        ])
    return lines


def _sentence(ladder: LayerBisection) -> str:
    says = f"Without a graft, B's next token is {short(ladder.kl)} nats (KL) from A's."
    if ladder.kl == 0:
        return "A and B give the same next token's distribution: what differs does not reach it on this prompt."
    if ladder.entry is None:
        return f"{says} No layer's output from B brings it back: the cause is before the layers or after them."
    return f"{says} B's values put into A bring it back from layer {ladder.entry} on, not before it."
