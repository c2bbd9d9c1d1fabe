"""The command kl: KL of B from A over a text, token by token, and why the worst tokens differ."""

from __future__ import annotations

import sys
from pathlib import Path

from apr_tui.cli.launch import source_of
from apr_tui.cli.progress import check_junit, progress, wrote, wrote_junit
from apr_tui.options import JUNIT, JudgeArguments, Parser, read_count
from core import session


class Arguments(JudgeArguments):
    """Arguments of kl."""

    A: str
    B: str
    compute: str
    device: str
    threads: int | None
    no_mmap: bool
    plant: str | None
    corpus: Path | None
    context: int
    most: int | None
    worst: int


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("A", help="the file that B is held to")
    parser.add_argument("B", help="the file that is judged")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="the text (default: the project's own)")
    parser.add_argument("--context", type=read_count, metavar="N", default=512, help="tokens a chunk (default 512)")
    parser.add_argument("--tokens", dest="most", type=read_count, metavar="N", help="stop after N tokens of the text")
    parser.add_argument("--worst", type=read_count, metavar="K", default=20, help="tokens to explain (default 20)")
    parser.take("--compute", "--device", "--threads", "--no-mmap", "--plant")
    parser.take("--out", help="keep state and reports there; the same command goes on")
    parser.take("--force", help="replace a --junit file that is not ours")
    parser.take("--json", "--quiet", *JUNIT)


def run(arguments: Arguments) -> int:
    """Measure, print, and return the exit code."""
    from core.bundle.damage_document import kl_document, kl_text
    from core.system.json_text import to_json

    a, b = source_of(arguments, arguments.A, arguments.plant), source_of(arguments, arguments.B)
    check_junit(arguments)
    found = session.kl(
        a, b,
        corpus=arguments.corpus, context=arguments.context, tokens=arguments.most, worst=arguments.worst,
        state=arguments.out, emit=progress(arguments))
    if not session.is_first():
        return 0  # the first of torchrun's processes writes and prints
    wrote_junit(arguments, [found])
    if arguments.out is not None:
        session.write_cost(arguments.out, found, (found.a, found.b), command=arguments.command,
                           repeat=arguments.repeat)
        wrote(arguments, arguments.out)
    sys.stdout.write(to_json(kl_document(found)) + "\n" if arguments.json else kl_text(found))
    return 0
