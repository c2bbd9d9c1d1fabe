"""The command import: turn another tool's trace into a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.progress import check_out, wrote
from apr_tui.options import OutArguments, Parser
from core import session
from core.trace.request import RunOptions


class Arguments(OutArguments):
    """Arguments of import. scope None: the file's own."""

    SRC: str
    out: Path
    scope: str | None
    tokens: tuple[int, ...] | None
    definition: str | None
    threshold: float


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("SRC")
    parser.take("--out", required=True)
    parser.take("--force")
    parser.take("--scope", default=None)  # a default would claim what nobody said
    parser.take("--tokens")
    parser.add_argument("--definition", choices=("sample", "population"), help="how the table's std was taken")
    parser.take("--threshold", "--json", "--quiet")


def run(arguments: Arguments) -> int:
    """Read the trace, write the bundle, print it, and return the exit code."""
    from apr_tui.cli import output

    check_out(arguments)
    traced = session.import_trace(
        Path(arguments.SRC), scope=arguments.scope, tokens=arguments.tokens, definition=arguments.definition)
    options = RunOptions(output.scope_shown(traced, arguments.scope), arguments.threshold)
    session.export(traced, arguments.out, options, force=arguments.force, command=arguments.command,
                   repeat=arguments.repeat)
    sys.stdout.write(output.saved_text(traced, options, as_json=arguments.json))
    wrote(arguments, arguments.out)
    return 0
