"""The command audit: say what a file shows by itself or beside its original, without a forward."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.progress import check_out, wrote, wrote_junit
from apr_tui.options import JUNIT, OUT, JudgeArguments, Parser
from core import session


class Arguments(JudgeArguments):
    """Arguments of audit."""

    FILE: str
    ORIGINAL: str | None


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("FILE", help="a GGUF or an .apr, of any architecture")
    parser.add_argument("ORIGINAL", nargs="?",
                        help="what it was made from: a folder of config.json and safetensors, a GGUF or an .apr")
    parser.take(*OUT, *JUNIT)


def run(arguments: Arguments) -> int:
    """Audit the file, write, print, and return the exit code: 1 where something is proved."""
    from core.bundle.audits import audit_document, audit_text
    from core.system.json_text import to_json

    check_out(arguments)
    original = None if arguments.ORIGINAL is None else Path(arguments.ORIGINAL)
    result = session.audit(Path(arguments.FILE), original)
    wrote_junit(arguments, [result])
    if arguments.out is not None:
        session.export(result, arguments.out, force=arguments.force, command=arguments.command,
                       repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(audit_document(result)) + "\n" if arguments.json else audit_text(result))
    return result.exit_code
