"""The command convert: turn a .gguf into an .apr, or back."""

from __future__ import annotations

from pathlib import Path

from apr_tui.cli.progress import say, wrote
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core import session
from core.system.json_text import to_json
from core.system.safe_text import safe_text


class Arguments(Basic):
    """Arguments of convert."""

    IN: str
    OUT: str
    to: str | None
    no_mmap: bool
    force: bool
    json: bool
    quiet: bool


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("IN", help="the file to read")
    parser.add_argument("OUT", help="the file to write, .gguf or .apr")
    parser.add_argument("--to", choices=("f16", "f32"), help="dequantise the types that the other format lacks")
    parser.take("--no-mmap", "--force", "--json", "--quiet")


def run(arguments: Arguments) -> int:
    """Convert, say what was lost, and return the exit code."""
    from core.bundle.manifest import SCHEMA

    notes = session.convert(Path(arguments.IN), Path(arguments.OUT), to=arguments.to, force=arguments.force)
    for note in notes:
        say(arguments, f"note: {safe_text(note)}")
    wrote(arguments, arguments.OUT)
    if arguments.json:
        print(to_json({"schema": SCHEMA, "wrote": arguments.OUT, "notes": list(notes)}))
    return 0
