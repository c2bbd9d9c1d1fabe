"""One run as asked for: source, prompt, options; and the command line that repeats it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from apr_tui.cli.commands import command_parser
from apr_tui.options import OPTIONS
from core.system.safe_text import join_words
from core.trace.request import DEFAULTS, Prompt, RunOptions, Source


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked to see. path None and bundle None: the built-in demonstration.

    settings: how any file is run; its own path says nothing.
    """

    path: Path | None = None
    bundle: Path | None = None
    settings: Source = field(default_factory=lambda: Source(Path()))
    prompt: Prompt = field(default_factory=Prompt)
    options: RunOptions = DEFAULTS
    theme: str = "auto"  # of the screen: a palette's name, or auto

    def source(self, path: Path) -> Source:
        """A file under the settings, with the bug that is to be planted."""
        return replace(self.settings, path=path)

    def clean_source(self, path: Path) -> Source:
        """A file under the settings, with no bug: side B."""
        return replace(self.settings, path=path, plant=None)

    def with_file(self, path: Path) -> Request:
        """The same of another file, without the bug that was planted in this one."""
        return replace(self, path=path, bundle=None, settings=self.clean_source(Path()))

    def with_scope(self, scope: str) -> Request:
        """The same at another scope."""
        return replace(self, options=replace(self.options, scope=scope))

    def command(self, verb: str, *paths: Path, scope: str) -> str:
        """Write the command that gives the same numbers without a screen, of the options that the verb takes."""
        known, asked, usual = command_parser(verb).taken, _told(self.with_scope(scope)), _told(Request())
        words = ["apr-tui", verb, *map(str, paths), *(["--text"] if verb == "show" else [])]
        for name, option in OPTIONS.items():
            key = option.field or name.removeprefix("--")
            if name in known and asked.get(key) != usual.get(key):
                words += [name] if option.metavar is None else [name, option.write(asked[key])]
        return join_words(words)


def _told(request: Request) -> dict[str, Any]:
    """What each option is set to, by the field that it sets; where token ids are fed, the text is not."""
    records = (request.settings, request.prompt, request.options)
    told = {f.name: getattr(record, f.name) for record in records for f in fields(record)}
    return told | {"prompt": told["text"] if told["tokens"] is None else Prompt().text}


def write_prompt(text: str) -> str:
    """Write a prompt on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def read_prompt(text: str) -> str:
    """Read what write_prompt wrote."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


def typed_path(text: str | Path) -> Path:
    """Return the path that was typed, with ~ as a shell reads it: ~NAME of nobody stays as it is."""
    return Path(os.path.expanduser(text))
