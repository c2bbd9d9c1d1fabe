"""The commands: a row here and a file of this folder each, which is loaded when its command is asked for.

A command's file has the class Arguments, add_arguments(parser) and run(arguments), which returns the exit code. What a
run needs is imported inside run: --help and a refusal load no numpy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any, Protocol, cast

from apr_tui.options import CONSOLE, OPTIONS, Arguments, Parser
from core.system.mapped_file import NO_MMAP
from core.system.safe_text import join_words
from core.trace.engines import ENGINES

# in the order of --help
COMMANDS = {
    "trace": "trace a model file: the grid, findings, next tokens",
    "check": "check a source against float64 on its own inputs",
    "compare": "judge B against A: H1, H2, H3 or why not",
    "bisect": "name the first place, the wrong side, and prove it by a ladder of grafts",
    "audit": "say what a file shows by itself: proofs and hints, without a forward",
    "kl": "KL of B from A over a text, and why the worst tokens differ",
    "damage": "what each tensor of a quantised file costs, and what to raise for a budget",
    "train": "step a training run, with its gates and checkpoints that can be traced",
    "import": "turn another tool's trace into a bundle",
    "convert": "convert between .gguf and .apr",
    "show": "open a saved bundle in the console, or print it",
    "demo": "write the demonstration pair",
    "doctor": "say what this machine offers",
}
UNTOLD = ("out", "force", "json", "quiet", "junit", "csv", "text", "help")  # what changes no number


class Command(Protocol):
    """What a command's file has."""

    Arguments: type[Arguments]

    def add_arguments(self, parser: Parser) -> None: ...
    def run(self, arguments: Any) -> int: ...  # noqa: ANN401 (its own Arguments)


def find_command(name: str) -> Command:
    """Load a command's file; import_.py is import's, which no Python file can be called."""
    return cast(Command, import_module(f"apr_tui.cli.{name}{'_' if iskeyword(name) else ''}"))


def command_parser(name: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"apr-tui {name}", description=COMMANDS[name])
    find_command(name).add_arguments(parser)
    return parser


def read_arguments(name: str, words: Sequence[str]) -> Any:  # noqa: ANN401 (the command's own Arguments)
    """Read the words behind a command's name; UsageError."""
    arguments = command_parser(name).parse_args(words, find_command(name).Arguments())
    arguments.command, arguments.words = " ".join(("apr-tui", name, *words)), [name, *words]
    arguments.repeat = normal_form(name, words)
    return arguments


def normal_form(name: str, words: Sequence[str]) -> str:
    """The command as a report tells it: files by name, options in order, nothing that changes no number."""
    parser = command_parser(name)
    asked, positional, options = parser.parse_args(words), [], []
    for action in parser.actions:
        value = getattr(asked, action.dest, None)
        if value is None or action.dest in UNTOLD or value == action.default:
            continue
        if not action.option_strings:
            positional.append(_by_name(str(value)))
            continue
        row = OPTIONS.get(action.option_strings[0]) if action.option_strings[0] in parser.taken else None
        written = row.write(value) if row is not None and not isinstance(value, Path) else value
        told = [] if action.nargs == 0 else [written.name if isinstance(written, Path) else str(written)]
        options += [action.option_strings[0], *told]
    return join_words(["apr-tui", name, *positional, *options])


def _by_name(source: str) -> str:
    """A source without its folders: transformers:/a/b@compute=q8 is transformers:b@compute=q8."""
    scheme, colon, rest = source.partition(":")
    named = (rest if colon and scheme in ENGINES else source).rstrip("/").rpartition("/")[2]
    return f"{scheme}:{named}" if colon and scheme in ENGINES else named


def run(name: str, words: Sequence[str]) -> int:
    """Run a command on the words behind its name and return its exit code."""
    arguments = read_arguments(name, words)
    settle_mapping(arguments)
    return find_command(name).run(arguments)


def settle_mapping(arguments: Arguments) -> None:
    """Have this process and its children read model files at once where --no-mmap says so."""
    if getattr(arguments, "no_mmap", False):  # a command that opens no model has no such option
        os.environ[NO_MMAP] = "1"


def console_parser() -> Parser:
    """The parser of the console, which is what runs without a command."""
    commands = "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
    parser = Parser(
        prog="apr-tui", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Open the console on a model file (.gguf or .apr), or on the built-in demonstration.",
        epilog=f"commands:\n{commands}\n\n`apr-tui COMMAND --help` lists a command's options.")
    parser.add_argument("MODEL", nargs="?")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.take(*CONSOLE, "--theme")
    return parser
