"""The command trace: run a model file, print its grid and hints, write them as a bundle."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from apr_tui.cli.launch import prompt_of, read_option, source_of
from apr_tui.cli.progress import check_out, progress, wrote
from apr_tui.options import CONSOLE, OUT, OutArguments, Parser, RunArguments, record_of
from core import session
from core.system.limits import CONTRACT_BYTES
from core.trace.request import Prompt, RunOptions


class Arguments(RunArguments, OutArguments):
    """Arguments of trace."""

    MODEL: str
    csv: Path | None
    contract: Path | None


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("MODEL", help="a model file, or llama.cpp:FILE, transformers:FILE")
    parser.take(*CONSOLE, *OUT, "--values")
    parser.add_argument("--no-witness", dest="witness", action="store_false",
                        help="do not run the untraced witness beside it")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the grid as CSV")
    parser.add_argument("--contract", type=Path, metavar="FILE",
                        help="judge the falsification tests of a published contract (YAML)")


def run(arguments: Arguments) -> int:
    """Trace, write what was asked for, print, and return the exit code."""
    from apr_tui.cli import output
    from core.bundle.report import report_text
    from core.bundle.writer import validate_csv
    from core.proof.contract_gates import contract_gates, judge_gates

    check_out(arguments)
    if arguments.csv is not None:
        validate_csv(arguments.csv, arguments.force)
    started, options = time.monotonic(), record_of(RunOptions, arguments, identify=arguments.out is not None)
    traced = session.trace(source_of(arguments, arguments.MODEL, arguments.plant), prompt_of(arguments) or Prompt(),
                           options, emit=progress(arguments))
    findings = session.hints(traced, options.scope, options.threshold)
    if arguments.out is not None:
        session.export(traced, arguments.out, options, force=arguments.force, command=arguments.command,
                       repeat=arguments.repeat, durations={"trace_seconds": time.monotonic() - started})
        wrote(arguments, arguments.out)
    if arguments.csv is not None:
        session.export_csv(traced, arguments.csv, options.scope)
    shown = [] if arguments.contract is None else contract_gates(
        read_option(arguments.contract, "--contract", CONTRACT_BYTES), str(arguments.contract), judge_gates(traced))
    sys.stdout.write(
        output.trace_json(traced, options.scope, findings, shown) + "\n" if arguments.json
        else report_text(traced, options.scope, findings, options.threshold) + output.gates_text(shown))
    return output.TRACED_DIFFERS if output.is_disturbed(traced) else 0
