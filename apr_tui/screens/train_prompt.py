"""Ask for a training run: a line of options, or the folder of a run to follow. It trains nothing."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from apr_tui.cli.commands import read_arguments
from apr_tui.options import record_of
from apr_tui.request import typed_path
from apr_tui.workers.train import Training
from core.system.errors import UsageError
from core.system.safe_text import join_words
from core.train.config import TrainOptions

if TYPE_CHECKING:
    from apr_tui.host import Host

ONLY_WORDS = {"-h", "--help", "--detach", "--json", "--quiet"}  # options that a screen has no use for


def default_line(device: str = "auto") -> str:
    """The options that stand in the line at first."""
    more = "" if device == "auto" else f" --device {device}"
    return f"--config tiny{more} --out ./train-{time.strftime('%Y%m%d-%H%M%S')}"


def ask_training(
    console: Host, say: Callable[[str, str], None], line: str, begin: Callable[[Training], None],
) -> None:
    """Ask for the options of a run, as on the command line."""
    def answered(text: str) -> None:
        begin(read_line(text))

    def refuse(text: str) -> str:
        try:
            read_line(text)
        except UsageError as error:
            return str(error)
        return ""

    console.ask("train", line, "options of apr-tui train; --watch DIR follows a run", answered, refuse=refuse)


def read_line(text: str) -> Training:
    """Turn a line of options into a run that is not yet started; UsageError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}. Close the quotation.") from error
    words = words[2:] if words[:2] == ["apr-tui", "train"] else words
    outside = ONLY_WORDS & set(words)
    if outside:
        command = f"apr-tui train {join_words(words)}"
        raise UsageError(f"{', '.join(sorted(outside))} works on the command line only: {command}")
    arguments = read_arguments("train", words)
    arguments.command = f"apr-tui train {join_words(words)}"
    if arguments.watch is not None:
        return Training(typed_path(arguments.watch), line=text)
    if arguments.out is None:
        raise UsageError("A run needs --out DIR, a folder of its own; --watch DIR follows one.")
    asked = record_of(TrainOptions, arguments)
    out = typed_path(asked.out)
    return Training(out, replace(asked, out=out), line=text)
