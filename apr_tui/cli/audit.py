"""The command audit: say what a file shows by itself or beside its original, without a forward."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core import session


class Arguments(Basic):
    """Arguments of audit."""

    FILE: str
    ORIGINAL: str | None
    json: bool


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("FILE")
    parser.add_argument("ORIGINAL", nargs="?",
                        help="what it was made from: a folder of config.json and safetensors, a GGUF or an .apr")
    parser.take("--json")


def run(arguments: Arguments) -> int:
    """Audit the file, print, and return the exit code: 1 where something is proved."""
    from core.bundle.audits import audit_document, audit_text
    from core.system.json_text import to_json

    original = None if arguments.ORIGINAL is None else Path(arguments.ORIGINAL)
    result = session.audit(Path(arguments.FILE), original)
    sys.stdout.write(to_json(audit_document(result)) + "\n" if arguments.json else audit_text(result))
    return result.exit_code
