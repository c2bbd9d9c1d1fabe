"""Ask for what is to be run: another prompt, another file, or a B beside A. It runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr_tui.recent import recent
from apr_tui.request import Request, read_ids, read_prompt, refuse_prompt, typed_source, write_prompt
from apr_tui.screens.dialogs import completions
from core.system.errors import UsageError

if TYPE_CHECKING:
    from apr_tui.host import Host
    from core.trace.request import Source

Start = Callable[[Request], None]
FORMS = ".gguf, .apr, a bundle, SCHEME:FILE, FILE@compute=q8"


def ask_prompt(host: Host, request: Request, start: Start) -> None:
    """Ask for another prompt and run it."""
    def answered(text: str) -> None:
        if text.startswith("tokens:"):
            prompt = replace(request.prompt, tokens=read_ids(text))
        else:
            prompt = replace(request.prompt, text=read_prompt(text), tokens=None)
        start(replace(request, prompt=prompt, bundle=None))

    tokens = request.prompt.tokens
    shown = write_prompt(request.prompt.text) if tokens is None else f"tokens: {' '.join(map(str, tokens))}"
    host.ask("prompt", shown, "text (\\n is a new line), or tokens: 1 2 3", answered, refuse=refuse_prompt)


def ask_file(host: Host, request: Request, start: Start) -> None:
    """Ask for another file or bundle and open it."""
    folder = f"{request.path.parent}/" if request.path else ""
    _ask_source(host, "open", folder, FORMS, request, lambda source: start(request.with_source(source)))


def ask_pair(host: Host, request: Request, a: Path) -> None:
    """Ask for a file to compare a with, and show the two."""
    _ask_source(host, f"compare {a.name} (A) with", f"{a.parent}/", f"B: {FORMS}", request,
                lambda b: host.show_pair(replace(request, other=b), a, b.path))


def _ask_source(
    host: Host, label: str, folder: str, hint: str, request: Request, answer: Callable[[Source], None],
) -> None:
    def refuse(text: str) -> str:
        try:
            typed_source(text, request.settings)
        except UsageError as error:
            return str(error)
        return ""

    def answered(text: str) -> None:
        if text.strip():
            answer(typed_source(text, request.settings))

    host.ask(label, folder, hint, answered, completes=completions, refuse=refuse, listed=recent())
