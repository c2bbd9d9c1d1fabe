"""The command damage: what each tensor of a quantised file costs, and what to raise for a budget of bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.progress import check_out, progress, wrote
from apr_tui.options import OUT, OutArguments, Parser, read_count
from core import session
from core.trace.request import Source


class Arguments(OutArguments):
    """Arguments of damage."""

    FILE: str
    original: Path | None
    corpus: Path | None
    exact: bool
    budget: int | None
    context: int
    threads: int | None


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("FILE", help="a quantised model file")
    parser.add_argument("--original", type=Path, metavar="FILE", help="the same model before it was quantised")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="the text (default: the project's own)")
    parser.add_argument("--exact", action="store_true", help="swap one tensor at a time; needs --original")
    parser.add_argument("--budget", type=read_count, metavar="BYTES", help="bytes that a recipe may add to the file")
    parser.add_argument("--context", type=read_count, metavar="N", default=128, help="tokens of a chunk (default 128)")
    parser.take("--threads", *OUT)


def run(arguments: Arguments) -> int:
    """Bill, print, and return the exit code."""
    from core.bundle.damage_document import damage_document, damage_text
    from core.system.json_text import to_json

    check_out(arguments)
    path = Path(arguments.FILE)
    found = session.damage(
        Source(path, threads=arguments.threads), original=arguments.original, corpus=arguments.corpus,
        exact=arguments.exact, budget=arguments.budget, context=arguments.context, emit=progress(arguments))
    name = None if arguments.original is None else arguments.original.name
    if arguments.out is not None:
        session.write_cost(arguments.out, found, (path.name, name), force=arguments.force, command=arguments.command,
                           repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(damage_document(found, path.name, name)) + "\n" if arguments.json
                     else damage_text(found, path.name))
    return 0
