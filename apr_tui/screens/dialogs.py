"""Ask for a line of text, or for yes or no, at the bottom of the screen. It judges no answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input

from apr_tui.request import typed_path
from apr_tui.style import Rows, Span, escape_untrusted, fit_text, wrap
from apr_tui.widgets.lines import Lines
from core.trace.engines import ENGINES

Refuse = Callable[[str], str]  # what was typed -> why it is not taken; empty where it is
Completes = Callable[[str], Iterable[str]]  # what was typed -> what it can become
MOST_LISTED = 8


class PathSuggester(Suggester):
    """Suggests the rest of a path: folders and model files first."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Complete value to the first entry of its folder that starts like it."""
        return next(completions(value), None)


def completions(value: str) -> Iterator[str]:
    """Yield the paths that start with value, behind its SCHEME: where it has one; a folder ends in a slash."""
    scheme, colon, rest = value.partition(":")
    front, value = (scheme + colon, rest) if colon and scheme in ENGINES else ("", value)
    if not value:
        return
    head, slash, start = value.rpartition("/")
    try:
        names = sorted(typed_path(head + slash or ".").iterdir(), key=_rank)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return
    for path in names:
        if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith(".")):
            is_bundle = os.path.isfile(path / "manifest.json")  # it is opened, not entered
            yield front + head + slash + path.name + ("/" if os.path.isdir(path) and not is_bundle else "")


class AskScreen(ModalScreen[str | None]):
    """One line of text; enter answers, escape gives None. Of a path that has to be there, enter and tab take what is
    shown, up and down choose from the list, and what is refused stays with its reason.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False), Binding("tab", "take", show=False, priority=True),
        Binding("down", "choose(1)", show=False, priority=True), Binding("up", "choose(-1)", show=False, priority=True),
    ]

    def __init__(
        self, label: str, value: str, hint: str, *, completes: Completes | None = None, refuse: Refuse | None = None,
        listed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.label, self.value, self.hint, self.completes, self.refuse = label, value, hint, completes, refuse
        self.first, self.listed, self.at = tuple(listed), tuple(listed), -1

    @property
    def must_be_there(self) -> bool:
        """Whether something is asked for that has to exist."""
        return self.completes is not None and self.refuse is not None

    def found(self, text: str) -> list[str]:
        """What text can become."""
        return list(self.completes(text)) if self.completes is not None else []

    def compose(self) -> ComposeResult:
        """List, label, input, hint."""
        with Vertical(id="ask"):
            yield Lines("listed", 0)
            yield Lines("label", 1)
            suggester = PathSuggester() if self.must_be_there and self.completes is completions else None
            yield Input(self.value, suggester=suggester, select_on_focus=False)
            yield Lines("hint", 1)

    def on_mount(self) -> None:
        """Show the label, the hint and the list."""
        self.query_one("#label", Lines).show([[(f" {escape_untrusted(self.label)}", "title")]])
        self._say("")
        self._list()

    def on_input_changed(self, event: Input.Changed) -> None:
        """List what starts like it; what was chosen from the list changes nothing."""
        if self.at >= 0 and event.value == self.listed[self.at]:
            return
        self.at = -1
        self.listed = self.first if event.value == self.value else tuple(self.found(event.value))
        self._say("")
        self._list()

    def action_take(self) -> None:
        """Take what is shown; of a path that need not be there, as far as it is certain, as a shell does."""
        field = self.query_one(Input)
        found = self.found(field.value)
        if found:
            self._put(found[0] if self.must_be_there else os.path.commonprefix(found))  # noqa: RUF071 (by characters)

    def action_choose(self, step: int) -> None:
        """Put the next of the list into the line."""
        if self.listed:
            self.at = (self.at + step) % len(self.listed) if self.at >= 0 or step > 0 else len(self.listed) - 1
            self._put(self.listed[self.at])
            self._list()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer, unless it is refused."""
        text = event.value
        why = self.refuse(text) if self.refuse is not None and text.strip() else ""
        shown = next(iter(self.found(text)), "") if why and self.must_be_there else ""
        if shown and shown != text:
            self._put(shown)
            why = self.refuse(shown) if self.refuse is not None and not shown.endswith("/") else " "
            text = shown
        if why:
            self._say(why.strip())
        else:
            self.dismiss(text)

    def _put(self, text: str) -> None:
        field = self.query_one(Input)
        field.value = text
        field.cursor_position = len(text)

    def _say(self, why: str) -> None:
        keys = "tab completes, " if self.completes is not None else ""
        usual: Rows = [[(f" {self.hint}", "quiet"), (f"  {keys}enter, esc", "rule")]]
        reasons: Rows = [[(f" {part}", "bad")] for part in wrap(f"X {escape_untrusted(why)}", self.app.size.width - 2)]
        self.query_one("#hint", Lines).show(reasons if why else usual)

    def _list(self) -> None:
        """Show the list, around what is chosen; what does not fit is counted."""
        start = max(min(self.at - MOST_LISTED // 2, len(self.listed) - MOST_LISTED), 0)
        seen = self.listed[start:start + MOST_LISTED]
        width = self.app.size.width
        rows: Rows = [[(f"  {fit_text(escape_untrusted(text), width - 4)}",
                        "title+cursor" if start + i == self.at else "text")] for i, text in enumerate(seen)]
        more = len(self.listed) - len(seen)
        self.query_one("#listed", Lines).show([*rows, *([[(f"  and {more} more", "quiet")]] if more else [])])


class ConfirmScreen(ModalScreen[bool]):
    """A question that y answers; any other key is no."""

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self.question, self.yes = question, yes

    def compose(self) -> ComposeResult:
        """The question."""
        with Vertical(id="ask"):
            yield Lines("label", 1)

    def on_mount(self) -> None:
        """Show the question."""
        question = wrap(escape_untrusted(self.question), self.app.size.width - 2)
        answers: list[Span] = [(" y", "key"), (f" {self.yes}   ", "quiet"), ("any other key", "key"), (" no", "quiet")]
        self.query_one("#label", Lines).show([*([(f" {line}", "watch")] for line in question), answers])

    def on_key(self, event: Key) -> None:
        """y is yes; the key goes no further, or it would act on the screen below."""
        event.stop()
        event.prevent_default()
        self.dismiss(event.key == "y")


def _rank(path: Path) -> tuple[bool, str]:
    return (not (path.suffix in (".gguf", ".apr") or os.path.isdir(path)), path.name)
