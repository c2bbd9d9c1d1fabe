"""The page of a bisection: its sentence and the ladder of grafts as bars, with export. Reading and writing only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr_tui.keys import LADDER, bindings, hint_spans
from apr_tui.page import PageScreen
from apr_tui.paint import Span, bar, foreign, plain, wrap
from apr_tui.run_worker import Frame
from apr_tui.status import error_note
from core.stages import place_order, place_text

if TYPE_CHECKING:
    from apr_tui.compare_view import CompareScreen
    from core.verdict import Bisection, Ladder, Rung

Lines_ = list[list[Span]]
BAR = 24
RECOVERED = 0.9  # as core.bisection has it, which would bring torch
HEADING = f"   {'B put in at':<16}{'brings back':>12}  {'':<{BAR}}  KL left"


class LadderScreen(PageScreen):
    """The ladder over the comparison; e writes the whole bisection, the reproducer too."""

    BINDINGS = bindings(LADDER)
    kind = LADDER

    def __init__(self, under: CompareScreen, found: Bisection) -> None:
        title = f"A {foreign(under.a.name)}  B {foreign(under.b.name)}  grafts of B into A"
        super().__init__(title, lambda width: ladder_lines(found, width))
        self.under, self.found = under, found
        self.note: tuple[str, str] | None = None

    def on_resize(self) -> None:
        """Show the title and the hints."""
        super().on_resize()
        self.show_lines()

    def show_lines(self) -> None:
        """Draw the message, or what runs, over the hints."""
        width = self.app.size.width
        is_busy = self.under.console.owner is self
        text, name = ("writing ...", "a") if is_busy else self.note or ("", "text")
        notes: Lines_ = [[(f" {part}", name)] for part in wrap(text, width - 2)] if text else []
        self.foot.show([*notes, hint_spans(LADDER, width)])

    # what the console asks of a screen that runs a job

    def show_frame(self, frame: Frame) -> None:
        """An export measures nothing."""
        self.show_lines()

    def ended(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the end of an export."""
        self.note = (f"written: {foreign(str(result))}", "a") if error is None else error_note(error)
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
        out = self.under.console.door_source().default_out(self.found.comparison.a)
        self.under.console.ask_export(self, self.found, out.with_name(f"{out.name}-bisect"))

    def action_copy(self) -> None:
        """Copy the command."""
        self.app.copy_to_clipboard(self.command())
        self.say(f"copied: {foreign(self.command())}")

    def action_back(self) -> None:
        """Leave; but not while it writes, or nobody would see how that ends."""
        if self.under.console.owner is not self:
            self.dismiss()


def ladder_lines(found: Bisection, width: int) -> Lines_:
    """The sentence, then the rungs: layers, then the stages of the layer where the cause lies."""
    from core.grid import short

    lines: Lines_ = [[], *([(f" {part}", "text")] for part in wrap(plain(foreign(found.sentence)), width - 2))]
    ladder = found.ladder
    if ladder is None:
        return [*lines, [], [(" no graft was tried: no cell differs", "quiet")]]
    says = " KL divergence of B's next token from A's, without a graft: "
    lines += [[], [(says, "quiet"), (f"{short(ladder.kl)} nats", "title")]]
    whole = [r for r in ladder.rungs if r.place[0] is None]
    layers = [r for r in ladder.rungs if r.place[1] == "output"]
    inside = [r for r in ladder.rungs if ladder.entry is not None and r.place[0] == ladder.entry]
    for title, rungs in (
        ("Layers, by halving", layers), ("The whole model's stages", whole),
        (f"Stages of layer {ladder.entry}", inside),
    ):
        if rungs:
            lines += [[], [(f" {title}", "title")], [(HEADING, "quiet")]]
            lines += [_rung(rung, ladder) for rung in sorted(rungs, key=lambda r: place_order(r.place))]
    return [*lines, [], *([(f" {part}", "quiet")] for part in wrap(_says(ladder), width - 2))]


def _rung(rung: Rung, ladder: Ladder) -> list[Span]:
    from core.grid import short

    best = ladder.best()
    is_cause = best is not None and rung.place == best.place and rung.recovered >= RECOVERED
    share = rung.recovered if rung.recovered == rung.recovered else 0.0
    name = "title" if is_cause else "text"
    return [
        (f"   {place_text(rung.place):<16}", name), (f"{rung.recovered:>12.1%}  ", name),
        (bar(share, BAR), "b" if share >= RECOVERED else "bar"), (f"  {short(rung.kl)}", "text"),
        ("  brings back most" if is_cause else "", "b"),
    ]


def _says(ladder: Ladder) -> str:
    if ladder.kl == 0:
        return "A and B give the same next token's distribution: what differs does not reach it on this prompt."
    if ladder.entry is None:
        return "No layer's output brings the logits back: the cause stands before the first layer or behind the last."
    return (f"The cause lies in layer {ladder.entry}: B's values from there on bring the logits back, "
            "from the layers before it they do not.")
