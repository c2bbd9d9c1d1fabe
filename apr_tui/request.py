"""One run as asked for: source, prompt, options; and the command line that repeats it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from apr_tui.cli.commands import command_parser
from apr_tui.options import OPTIONS
from core.model.stages import read_whole
from core.system.errors import UsageError
from core.system.safe_text import join_words
from core.trace.request import DEFAULTS, Prompt, RunOptions, Source, parse_source, write_source

SAVED = ("manifest.json", "verdict.json")  # either says that a folder was written by apr-tui


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked to see. path None and bundle None: the built-in demonstration.

    settings: how any file is run; its own path says nothing. other: the same of side B, where that is run otherwise.
    """

    path: Path | None = None
    bundle: Path | None = None
    settings: Source = field(default_factory=lambda: Source(Path()))
    prompt: Prompt = field(default_factory=Prompt)
    options: RunOptions = DEFAULTS
    theme: str = "auto"  # of the screen: a palette's name, or auto
    other: Source | None = None

    def source(self, path: Path) -> Source:
        """A file under the settings, with the bug that is to be planted."""
        return replace(self.settings, path=path)

    def clean_source(self, path: Path) -> Source:
        """A file under B's settings, with no bug: side B."""
        return replace(self.other or self.settings, path=path, plant=None)

    def with_file(self, path: Path) -> Request:
        """The same of another file, without the bug that was planted in this one."""
        return self.with_source(replace(self.settings, path=path))

    def with_source(self, source: Source) -> Request:
        """The same of another file and its settings."""
        settings = replace(source, path=Path(), plant=None)
        return replace(self, path=source.path, bundle=None, settings=settings, other=None)

    def with_scope(self, scope: str) -> Request:
        """The same at another scope."""
        return replace(self, options=replace(self.options, scope=scope))

    @property
    def feed(self) -> str:
        """How the text is fed: raw, or as chat; empty where no text is."""
        is_text = self.prompt.tokens is None and self.bundle is None
        return "" if not is_text else "chat" if self.prompt.chat else "raw"

    def command(self, verb: str, *paths: Path, scope: str) -> str:
        """Write the command that gives the same numbers without a screen, of the options that the verb takes."""
        known, asked, usual = command_parser(verb).taken, _told(self.with_scope(scope)), _told(Request())
        sides = (self.source, self.clean_source)
        names = [write_source(side(path), replace(self.settings, scheme="")) for side, path in zip(sides, paths)]  # noqa: B905
        words = ["apr-tui", verb, *names, *(["--text"] if verb == "show" else [])]
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


def read_ids(text: str) -> tuple[int, ...] | None:
    """Read tokens: 1 2 3; None where they are no whole numbers."""
    ids = [read_whole(word) for word in text.removeprefix("tokens:").replace(",", " ").split()]
    known = tuple(i for i in ids if i is not None)
    return known if known and len(known) == len(ids) else None


def refuse_prompt(text: str) -> str:
    """Why a prompt is not taken."""
    wrong = text.startswith("tokens:") and read_ids(text) is None
    return f"{text}: token ids are whole numbers, as in tokens: 3838 374 220." if wrong else ""


def typed_source(text: str, default: Source) -> Source:
    """Read a source as the command line does; UsageError, also where there is nothing that it could name."""
    source = parse_source(text.strip(), default)
    path = typed_path(source.path)
    if not os.path.exists(path):
        raise UsageError(f"There is no {path}.")
    is_saved = any(os.path.isfile(path / name) for name in SAVED)
    if os.path.isdir(path) and not (is_saved or source.scheme):
        raise UsageError(f"{path} is a folder: a .gguf or .apr file, a bundle, or SCHEME:FOLDER is needed.")
    return replace(source, path=path, scheme="" if is_saved else source.scheme)


def typed_path(text: str | Path) -> Path:
    """Return the path that was typed, with ~ as a shell reads it: ~NAME of nobody stays as it is."""
    return Path(os.path.expanduser(text))
