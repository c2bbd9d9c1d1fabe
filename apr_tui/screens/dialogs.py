"""Ask for a line of text, or for yes or no, at the bottom of the screen. It judges no answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from apr_tui.style import Span, escape_untrusted, wrap
from apr_tui.widgets.lines import Lines


class PathSuggester(Suggester):
    """Suggests the rest of a path: folders and model files first."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Complete value to the first entry of its folder that starts like it."""
        return next(completions(value), None)


def completions(value: str) -> Iterator[str]:
    """Yield the paths that start with value; a folder ends in a slash."""
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
            yield head + slash + path.name + ("/" if os.path.isdir(path) and not is_bundle else "")


class AskScreen(ModalScreen[str | None]):
    """One line of text; enter answers, escape gives None; tab completes a path, right takes the suggestion."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False), Binding("tab", "take", show=False, priority=True),
    ]

    def __init__(self, label: str, value: str, hint: str, *, is_path: bool = False) -> None:
        super().__init__()
        self.label, self.value, self.hint, self.is_path = label, value, hint, is_path

    def compose(self) -> ComposeResult:
        """Label, input, hint."""
        with Vertical(id="ask"):
            yield Lines("label", 1)
            yield Input(self.value, suggester=PathSuggester() if self.is_path else None, select_on_focus=False)
            yield Lines("hint", 1)

    def on_mount(self) -> None:
        """Show the label and the hint."""
        self.query_one("#label", Lines).show([[(f" {escape_untrusted(self.label)}", "title")]])
        keys = "tab completes, " if self.is_path else ""
        self.query_one("#hint", Lines).show([[(f" {self.hint}", "quiet"), (f"  {keys}enter, esc", "rule")]])

    def action_take(self) -> None:
        """Complete a path as far as it is certain, as a shell does."""
        field = self.query_one(Input)
        found = list(completions(field.value)) if self.is_path else []
        if found:
            field.value = os.path.commonprefix(found)  # noqa: RUF071 (by characters is what completion means)
            field.cursor_position = len(field.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer."""
        self.dismiss(event.value)


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
