"""The command demo: write the demonstration pair."""

from __future__ import annotations

from pathlib import Path

from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core import session
from core.system.safe_text import safe_text


class Arguments(Basic):
    """Arguments of demo."""

    out: Path
    fault: str | None
    force: bool
    quiet: bool  # for a caller that gives it to every command: there is no progress


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.take("--out", required=True)
    parser.add_argument("--fault", metavar="KIND@LAYER.STAGE", help="plant a bug in the bytes of demo.apr")
    parser.take("--force", "--quiet")


def run(arguments: Arguments) -> int:
    """Write both files, print their paths, and return the exit code."""
    for path in session.write_demo(arguments.out, fault=arguments.fault, force=arguments.force):
        print(safe_text(str(path)))
    return 0
