"""The command bisect: judge B against A, then prove the cause by grafts."""

from __future__ import annotations

import sys

from apr_tui.cli.launch import prompt_of, source_of
from apr_tui.cli.progress import check_out, progress, wrote, wrote_junit
from apr_tui.options import FEED, JUNIT, OUT, RUN, JudgeArguments, Parser, RunArguments, record_of
from core import session
from core.trace.request import RunOptions


class Arguments(RunArguments, JudgeArguments):
    """Arguments of bisect."""

    A: str
    B: str


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("A", help="the side that B is held to: a model file")
    parser.add_argument("B", help="the side that is judged")
    parser.take(*FEED, *RUN, *OUT, *JUNIT)


def run(arguments: Arguments) -> int:
    """Bisect, write, print, and return the exit code."""
    from apr_tui.cli import output
    from core.bundle.verdicts import bisection_document
    from core.proof.verdict import EXIT_CODES
    from core.system.json_text import to_json

    check_out(arguments)
    a, b = source_of(arguments, arguments.A, arguments.plant), source_of(arguments, arguments.B)
    options = record_of(RunOptions, arguments)
    result = session.bisect(a, b, prompt_of(arguments), options, emit=progress(arguments))
    wrote_junit(arguments, [result])
    if arguments.out is not None:
        session.export(result, arguments.out, options, force=arguments.force, command=arguments.command,
                       repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(bisection_document(result)) + "\n" if arguments.json else output.bisection_text(result))
    pair = result.comparison
    return output.TRACED_DIFFERS if output.is_disturbed(pair.a, pair.b) else EXIT_CODES[pair.verdict]
