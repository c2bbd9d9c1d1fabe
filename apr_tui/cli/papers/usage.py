"""Read what a command takes from its parser, as records that guide, manual page and completion are made of."""

from __future__ import annotations

from dataclasses import dataclass

from apr_tui.cli.commands import command_parser, console_parser
from apr_tui.options import OPTIONS, Parser

PATHS = ("FILE", "DIR", "MODEL", "SOURCE", "A", "B", "ORIGINAL", "BUNDLE", "IN", "OUT", "SRC")
EXIT_CODES = {
    0: "done: also AGREE, H1, H3, a check that passed, and a trace with findings",
    1: "a bug is proved: H2, a failed check, a proof of an audit, a failed gate; or watching changed the run",
    2: "usage: an unknown word, a bad value, an output that exists, an engine that is not installed",
    3: "a file cannot be read or is not supported, or an engine failed",
    4: "NOT_COMPARABLE: the numbers were not taken alike, or there are no values to check",
    5: "INCONCLUSIVE: not proved either way, and why",
    6: "the device is absent or full",
    7: "an output could not be written",
    70: "an internal error, with a log's path",
    130: "interrupted",
}
ON_ERROR = "An error says on stderr what was found, what was needed and what to do."


@dataclass(frozen=True, slots=True)
class Word:
    """One thing that a command takes. flags: () of what is known by its place; name: what a person calls its value.

    offered: its values, where they are few. takes: whether a value follows; is_path: whether that is a file or folder.
    """

    flags: tuple[str, ...]
    name: str
    about: str
    offered: tuple[str, ...]
    takes: bool
    is_path: bool


def usage_of(command: str | None) -> tuple[Word, ...]:
    """What a command takes, in order; None: the console."""
    parser = console_parser() if command is None else command_parser(command)
    return tuple(_words(parser))


def _words(parser: Parser) -> list[Word]:
    found = []
    for action in parser.actions:
        flags, row = tuple(action.option_strings), OPTIONS.get(next(iter(action.option_strings), ""))
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        offered = tuple(map(str, action.choices or (row.offered if row is not None else ())))
        takes = action.nargs != 0
        found.append(Word(flags, name, str(action.help or ""), offered, takes, takes and not offered and name in PATHS))
    return found
