"""The command compare: judge B against A, on one prompt or on each line of a file."""

from __future__ import annotations

import sys

from apr_tui.cli.launch import PromptsArguments, prompts_of, source_of
from apr_tui.cli.progress import check_out, progress, wrote, wrote_junit
from apr_tui.options import FEED, JUNIT, OUT, RUN, JudgeArguments, Parser, record_of
from core import session
from core.trace.request import RunOptions


class Arguments(PromptsArguments, JudgeArguments):
    """Arguments of compare."""

    A: str
    B: str


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("A", help="the side that B is held to: a model file, a bundle, llama.cpp:FILE ...")
    parser.add_argument("B", help="the side that is judged")
    parser.take(*FEED, "--prompts", *RUN, *OUT, *JUNIT, "--values")


def run(arguments: Arguments) -> int:
    """Compare on each prompt, keep the first of the worst, write, print, and return the exit code."""
    from apr_tui.cli import output
    from core.bundle.verdicts import comparison_document
    from core.proof.verdict import EXIT_CODES, SEVERITY
    from core.system.json_text import to_json

    check_out(arguments)
    a, b = source_of(arguments, arguments.A, arguments.plant), source_of(arguments, arguments.B)
    options = record_of(RunOptions, arguments, identify=arguments.out is not None)
    judged = [session.compare(a, b, prompt, options, emit=progress(arguments)) for prompt in prompts_of(arguments)]
    result = max(judged, key=lambda pair: SEVERITY.index(pair.verdict))
    wrote_junit(arguments, judged)
    if arguments.out is not None:
        session.export(result, arguments.out, options, force=arguments.force, command=arguments.command,
                       repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(comparison_document(result)) + "\n" if arguments.json else output.comparison_text(result))
    return output.TRACED_DIFFERS if output.is_disturbed(result.a, result.b) else EXIT_CODES[result.verdict]
