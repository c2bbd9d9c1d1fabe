"""The command demo: write the demonstration pair."""

from __future__ import annotations

from pathlib import Path

from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core import session
from core.system.json_text import to_json
from core.system.safe_text import safe_text


class Arguments(Basic):
    """Arguments of demo."""

    out: Path
    fault: str | None
    force: bool
    json: bool
    quiet: bool  # for a caller that gives it to every command: there is no progress


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.take("--out", required=True)
    parser.add_argument("--fault", metavar="KIND@LAYER.STAGE", help="plant a bug in the bytes of demo.apr")
    parser.take("--force", "--json", "--quiet")


def run(arguments: Arguments) -> int:
    """Write both files, print their paths, and return the exit code."""
    from core.bundle.manifest import SCHEMA

    files = session.write_demo(arguments.out, fault=arguments.fault, force=arguments.force)
    if arguments.json:
        gguf, apr = map(str, files)
        print(to_json({"schema": SCHEMA, "gguf": gguf, "apr": apr, "planted": arguments.fault}))
    else:
        print(*(safe_text(str(path)) for path in files), sep="\n")
    return 0
