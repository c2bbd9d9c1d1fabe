"""The command man: print the manual page, made from the commands' own tables, as roff."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from apr_tui.cli.commands import COMMANDS, EXAMPLES, command_line
from apr_tui.cli.papers.usage import EXIT_CODES, Word, usage_of
from apr_tui.config import FILE
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser

ABOUT = "is this spike the model, or a bug, and if a bug, where?"
DESCRIPTION = (
    "Without a command it opens the console on a model file (.gguf or .apr), or on the built-in demonstration. "
    "Results are on stdout, progress and messages on stderr. A side may carry its own settings: "
    "FILE@compute=q8,threads=1,cache=q8_0; another engine is llama.cpp:FILE or transformers:FILE.")
FILES = {
    f"$XDG_CONFIG_HOME/apr-tui/{FILE}": "the user's settings: theme, threshold, prompt, chat, mouse",
    "$XDG_CACHE_HOME/apr-tui": "kernels, the demonstration, rungs of ladders: all of it can be made again",
    "$XDG_STATE_HOME/apr-tui": "logs of internal errors",
}
ENVIRONMENT = {
    "NO_COLOR": "no colours", "APR_TUI_ASCII": "1: no character beyond ASCII on the screen",
    "APR_TUI_NO_FSYNC": "1: do not force what is written to the disk",
}


class Arguments(Basic):
    """Arguments of man."""


def add_arguments(parser: Parser) -> None:
    """It takes nothing."""


def run(arguments: Arguments) -> int:
    """Print the page and return the exit code."""
    sys.stdout.write(man_page())
    return 0


def man_page() -> str:
    """The page in the man macros."""
    parts = ['.TH APR-TUI 1 "" apr-tui', ".SH NAME", f"apr-tui \\- {_text(ABOUT)}", ".SH SYNOPSIS",
             ".B apr-tui", "[MODEL] [options]", ".br", ".B apr-tui", "COMMAND [words] [options]",
             ".SH DESCRIPTION", _text(DESCRIPTION), ".SH CONSOLE", *_listed(usage_of(None)), ".SH COMMANDS"]
    for name, about in COMMANDS.items():
        parts += [f'.SS "apr-tui {name}"', _text(f"{about[0].upper()}{about[1:]}."), *_listed(usage_of(name))]
        for example in EXAMPLES[name]:
            parts += [".PP", _text(f"Example: {example.about}"), ".PP", ".nf", ".RS",
                      _text(command_line(name, example)), ".RE", ".fi"]
    for title, rows in (("EXIT STATUS", {str(code): said for code, said in EXIT_CODES.items()}), ("FILES", FILES),
                        ("ENVIRONMENT", ENVIRONMENT)):
        parts.append(f".SH {title}")
        for name, said in rows.items():
            parts += [".TP", f".B {_text(name)}", _text(said)]
    return "\n".join(parts) + "\n"


def _listed(words: Iterable[Word]) -> list[str]:
    """Each word with what it is, as a tagged paragraph."""
    found = []
    for word in words:
        name = ", ".join(word.flags) + (f" {word.name}" if word.takes else "") if word.flags else word.name
        found += [".TP", f".B {_text(name)}", _text(word.about)]
    return found


def _text(text: str) -> str:
    """Text in which roff finds nothing to obey."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{safe}" if safe[:1] in (".", "'") else safe
