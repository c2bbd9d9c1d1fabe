"""The command show: open a saved bundle in the console, or print it."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.launch import open_console
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core import session
from core.trace.request import RunOptions


class Arguments(Basic):
    """Arguments of show. scope None: the bundle's own."""

    BUNDLE: str
    text: bool
    scope: str | None
    threshold: float
    json: bool
    theme: str


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("BUNDLE", help="a folder of evidence")
    parser.add_argument("--text", action="store_true", help="print it instead of opening the console")
    parser.take("--scope", default=None)  # a default would claim what nobody said
    parser.take("--threshold", "--json", "--theme")


def run(arguments: Arguments) -> int:
    """Open or print the bundle, or the folder of a verdict, and return the exit code."""
    bundle = Path(arguments.BUNDLE)
    if session.is_cost(bundle) and (arguments.text or arguments.json):
        sys.stdout.write(session.read_cost(bundle, as_json=arguments.json))
        return 0
    if not (arguments.text or arguments.json):
        from apr_tui.request import Request

        options = RunOptions(arguments.scope or RunOptions().scope, arguments.threshold)
        return open_console(Request(bundle=bundle, options=options, theme=arguments.theme))
    from apr_tui.cli import output

    judged = session.open_judged(bundle) if session.is_judged(bundle) else None
    if judged is not None:
        sys.stdout.write(output.judged_text(judged, as_json=arguments.json))
        return 0
    traced = session.open_bundle(bundle)
    options = RunOptions(output.scope_shown(traced, arguments.scope), arguments.threshold)
    sys.stdout.write(output.saved_text(traced, options, as_json=arguments.json))
    return 0
