"""One run as asked for: source, prompt, options; and the command line that repeats it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.trace.request import Prompt, Source


DEFAULT_PROMPT = "What is 2+2?"


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked to see. path None and bundle None: the built-in demonstration."""

    path: Path | None = None
    bundle: Path | None = None
    compute: str = "f32"
    device: str = "auto"
    threads: int | None = None
    plant: str | None = None
    prompt: str = DEFAULT_PROMPT
    tokens: tuple[int, ...] | None = None
    chat: bool = False
    layers: tuple[int, int] | None = None
    generate: int = 0
    scope: str = "all"
    threshold: float = 10.0

    def source(self, path: Path, plant: str | None = None) -> Source:
        """The record of a side that the door takes."""
        from core.trace.request import Source

        return Source(path, compute=self.compute, device=self.device, threads=self.threads, plant=plant)

    def prompt_record(self) -> Prompt:
        """The record of the prompt that the door takes."""
        from core.trace.request import Prompt

        return Prompt(self.prompt, self.tokens, self.chat)

    def command(self, verb: str, *paths: Path, scope: str) -> str:
        """Write the command that gives the same numbers without a screen, of the options that the verb takes."""
        from apr_tui.options import COMMANDS

        known = COMMANDS[verb][2]
        words = ["apr-tui", verb, *map(str, paths), *(["--text"] if verb == "show" else [])]
        tokens = None if self.tokens is None else ",".join(map(str, self.tokens))
        rows: tuple[tuple[str, object, object], ...] = (
            ("--tokens", tokens, None), ("--prompt", self.prompt if tokens is None else DEFAULT_PROMPT, DEFAULT_PROMPT),
            ("--compute", self.compute, "f32"), ("--device", self.device, "auto"), ("--threads", self.threads, None),
            ("--plant", self.plant, None), ("--scope", scope, "all"), ("--threshold", self.threshold, 10.0),
            ("--generate", self.generate, 0),
        )
        for option, now, usual in rows:
            if now != usual and option in known:
                words += [option, f"{now:g}" if isinstance(now, float) else str(now)]
        if self.chat and "--chat" in known:
            words.append("--chat")
        if self.layers is not None and "--layers" in known:
            words += ["--layers", f"{self.layers[0]}..{self.layers[1]}"]
        return shlex.join(words)


def write_prompt(text: str) -> str:
    """Write a prompt on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def read_prompt(text: str) -> str:
    """Read what write_prompt wrote."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


def typed_path(text: str | Path) -> Path:
    """Return the path that was typed, with ~ as a shell reads it: ~NAME of nobody stays as it is."""
    return Path(os.path.expanduser(text))
