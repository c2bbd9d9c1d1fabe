"""The command check: recompute every stage of a source in float64 from its own inputs."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.launch import PromptsArguments, prompts_of, source_of
from apr_tui.cli.progress import check_out, progress, wrote, wrote_junit
from apr_tui.options import FEED, JUNIT, OUT, RUN, JudgeArguments, Parser, record_of
from core import session
from core.trace.request import RunOptions

SEVERITY = (0, 5, 1)  # exit codes: PASS, INCONCLUSIVE, FAIL; of several prompts the worst counts


class Arguments(PromptsArguments, JudgeArguments):
    """Arguments of check."""

    SOURCE: str
    model: Path | None


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("SOURCE", help="a model file, a bundle, or llama.cpp:FILE, transformers:FILE")
    parser.take(*FEED, "--prompts", *RUN, "--generate", *OUT, *JUNIT)
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="the file whose weights a bundle's values are checked against")


def run(arguments: Arguments) -> int:
    """Check on each prompt, keep the worst, write, print, and return the exit code."""
    from apr_tui.cli import output
    from core.bundle.verdicts import check_document
    from core.system.json_text import to_json

    check_out(arguments)
    source = source_of(arguments, arguments.SOURCE, arguments.plant)
    options = record_of(RunOptions, arguments, identify=arguments.out is not None)
    judged = [session.check(source, prompt, options, model=arguments.model, emit=progress(arguments))
                  for prompt in prompts_of(arguments)]
    result = max(judged, key=lambda check: SEVERITY.index(check.exit_code))
    wrote_junit(arguments, judged)
    if arguments.out is not None:
        session.export(result, arguments.out, options, force=arguments.force, command=arguments.command,
                       repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(check_document(result)) + "\n" if arguments.json else output.check_text(result))
    return output.TRACED_DIFFERS if output.is_disturbed(result.trace) else result.exit_code
