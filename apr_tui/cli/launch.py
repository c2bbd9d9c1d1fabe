"""Turn the arguments into what to run: prompt, source, and the console; no numpy: the first paint waits for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from apr_tui.options import Arguments, FeedArguments, RunArguments, record_of
from core.system.errors import FileError, UsageError
from core.system.limits import PROMPT_BYTES
from core.system.regular_file import read_text
from core.trace.request import Prompt, RunOptions, Source, parse_source

if TYPE_CHECKING:
    from apr_tui.request import Request


class ConsoleArguments(RunArguments):
    """Arguments of the console."""

    MODEL: str | None
    theme: str
    version: bool


class PromptsArguments(RunArguments):
    """RunArguments of a command that judges on several prompts."""

    prompts: Path | None


def open_console(request: Request) -> int:
    """Open the console on what is asked for; UsageError without a terminal."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError(
            "the console needs a terminal on stdin, stdout and stderr. Use `apr-tui trace MODEL` without one.")
    from apr_tui.run import run_console

    with _stderr_of_its_own():
        return run_console(request)


@contextmanager
def _stderr_of_its_own() -> Iterator[None]:
    """Have the console alone draw on the terminal: what a library writes to the process's stderr goes nowhere."""
    assert sys.__stderr__ is not None
    usual, number = sys.__stderr__, sys.__stderr__.fileno()
    drawn = os.dup(number)
    own = os.fdopen(drawn, "w", encoding=usual.encoding, errors=usual.errors, closefd=False)
    sys.__stderr__ = own  # type: ignore[misc]  # where Textual draws
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(drawn, number)
        os.close(drawn)
        sys.__stderr__ = usual  # type: ignore[misc]


def request_of(arguments: ConsoleArguments) -> Request:
    """The console's request: a model, or the demonstration."""
    from apr_tui.request import Request

    return Request(
        path=Path(arguments.MODEL) if arguments.MODEL else None, settings=record_of(Source, arguments, path=Path()),
        prompt=prompt_of(arguments) or Prompt(), options=record_of(RunOptions, arguments),
        theme=arguments.theme)


def prompt_of(arguments: FeedArguments) -> Prompt | None:
    """The prompt that the options give, None where they give none; UsageError where they give two."""
    given = [n for n in ("prompt", "prompt_file", "tokens") if getattr(arguments, n) is not None]
    if len(given) > 1:
        raise UsageError(
            f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} both say what to feed; give one.")
    if arguments.tokens is not None and arguments.chat:
        raise UsageError("--chat puts text through a template; it does not go with --tokens.")
    words = arguments.prompt
    if arguments.prompt_file is not None:
        words = read_option(arguments.prompt_file, "--prompt-file").removesuffix("\n")
    if not given and not arguments.chat:
        return None
    return Prompt(text=Prompt().text if words is None else words, tokens=arguments.tokens, chat=arguments.chat)


def prompts_of(arguments: PromptsArguments) -> list[Prompt | None]:
    """The prompts to judge on: one a line of --prompts, else the one that the other options give."""
    if arguments.prompts is None:
        return [prompt_of(arguments)]
    if prompt_of(arguments) is not None and not arguments.chat:
        raise UsageError("--prompts gives the prompts; it does not go with --prompt, --prompt-file or --tokens.")
    lines = [line for line in read_option(arguments.prompts, "--prompts").split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"--prompts {arguments.prompts} holds no prompt; one a line is needed.")
    return [Prompt(text=line, chat=arguments.chat) for line in lines]


def source_of(arguments: Arguments, name: str, plant: str | None = None) -> Source:
    """One side of the command line: its own settings, then the common options. plant: where it is this side's."""
    return parse_source(name, record_of(Source, arguments, path=Path(), plant=plant))


def read_option(path: Path, option: str, most_bytes: int = PROMPT_BYTES) -> str:
    """Read a UTF-8 text file that an option names; FileError."""
    try:
        return read_text(path, most_bytes, "A UTF-8 text file is needed.")
    except FileError as error:
        raise FileError(f"{option}: {error}") from error
