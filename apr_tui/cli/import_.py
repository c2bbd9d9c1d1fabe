"""The command import: turn another tool's trace into a bundle."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from apr_tui.cli.progress import check_out, wrote
from apr_tui.options import OutArguments, Parser
from core import session
from core.trace.request import RunOptions

FORMS = {  # what SRC may be -> an example, and what it shows
    "llama-eval-callback, llama-debug": ("llama-eval-callback -m M.gguf -p TEXT > log.txt 2>&1",
                                         "log.txt --model M.gguf --tokens 1,2,3", "means of every stage"),
    "transformers' debugger": ("model_addition_debugger_context(model, DIR, do_prune_layers=False, use_repr=False)",
                               "DIR --model M.gguf", "values; with use_repr=True mean, std, min, max"),
    "named arrays": ("numpy.savez('dump.npz', **{'0.attn_norm': x, 'tokens': ids}), .npy, .safetensors, or a folder",
                     "dump.npz --model M.gguf", "values; names: L.stage, a module's path, hidden_N"),
    "SGLang's dump folder": ("--debug-tensor-dump-output-folder DIR, its .pt files written anew as .safetensors",
                             "DIR --model M.gguf --tokens 1,2,3", "values"),
    "importance matrix": ("llama-imatrix -m M.gguf -f TEXT -o imatrix.gguf", "imatrix.gguf --model M.gguf",
                          "l2 of the products' inputs"),
    "rows of statistics": ("CSV layer,stage,scope,std, or JSONL {\"layer\": 0, \"stage\": \"ffn_out\", \"std\": 1}",
                           "stats.csv --model M.gguf --tokens 1,2,3 --scope all --definition sample", "what it has"),
    "table of stds": ("CSV layer,attn_norm,...,output", "stds.csv --tokens 1,2,3 --scope last --definition sample",
                      "stds"),
    "apr trace": ("apr trace M.apr --payload [--json] > trace.txt", "trace.txt", "mean and std"),
    "APRT stage files": ("apr trace M.gguf --save-tensor DIR", "DIR --tokens 1,2,3", "values"),
}
THEN = """A trace with values is judged by `apr-tui check OUT --model M.gguf` and `apr-tui compare M.gguf OUT`; one of
statistics by compare alone. Pickles (.pt, .bin) are never opened: they may run any code."""


class Arguments(OutArguments):
    """Arguments of import. scope None: the file's own."""

    SRC: str
    out: Path
    scope: str | None
    tokens: tuple[int, ...] | None
    definition: str | None
    model: Path | None
    threshold: float


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("SRC", help="another tool's trace: a file or a folder")
    parser.take("--out", required=True)
    parser.take("--force")
    parser.take("--scope", default=None)  # a default would claim what nobody said
    parser.take("--tokens")
    parser.add_argument("--definition", choices=("sample", "population"), help="how the table's std was taken")
    parser.add_argument("--model", metavar="FILE", type=Path, help="the model that was run: it says what SRC does not")
    parser.take("--threshold", "--json", "--quiet")
    parser.formatter_class, parser.epilog = RawDescriptionHelpFormatter, forms_text()


def forms_text() -> str:
    """Every form of SRC, with how it is made and imported."""
    blocks = (f"  {name} ({shows})\n    {made}\n    apr-tui import {words} --out OUT"
              for name, (made, words, shows) in FORMS.items())
    return "\n".join(["what SRC may be:", *blocks, "", THEN])


def run(arguments: Arguments) -> int:
    """Read the trace, write the bundle, print it, and return the exit code."""
    from apr_tui.cli import output

    check_out(arguments)
    traced = session.import_trace(
        Path(arguments.SRC), scope=arguments.scope, tokens=arguments.tokens, definition=arguments.definition,
        model=arguments.model)
    options = RunOptions(output.scope_shown(traced, arguments.scope), arguments.threshold)
    session.export(traced, arguments.out, options, force=arguments.force, command=arguments.command,
                   repeat=arguments.repeat)
    sys.stdout.write(output.saved_text(traced, options, as_json=arguments.json))
    wrote(arguments, arguments.out)
    return 0
