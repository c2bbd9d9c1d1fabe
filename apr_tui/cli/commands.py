"""The commands: a row here and a file of this folder each, which is loaded when its command is asked for.

A command's file has the class Arguments, add_arguments(parser) and run(arguments), which returns the exit code. What a
run needs is imported inside run: --help and a refusal load no numpy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from apr_tui.config import read_config
from apr_tui.options import CONSOLE, OPTIONS, Arguments, Parser, nearest
from core.system.atomic_folder import MANIFEST
from core.system.errors import UsageError
from core.system.mapped_file import NO_MMAP
from core.system.safe_text import join_words
from core.trace.engines import ENGINES

# in the order of --help
COMMANDS = {
    "trace": "trace a model file: the grid, findings, next tokens",
    "look": "everything about one stage: tokens, weights, histogram, attention, logit lens",
    "check": "check a source against float64 on its own inputs",
    "compare": "judge B against A: H1, H2, H3 or why not",
    "bisect": "name the first place, the wrong side, and prove it by a ladder of grafts",
    "audit": "say what a file shows by itself: proofs and hints, without a forward",
    "kl": "KL of B from A over a text, and why the worst tokens differ",
    "damage": "what each tensor of a quantised file costs, and what to raise for a budget",
    "train": "step a training run, with its gates and checkpoints that can be traced",
    "import": "turn another tool's trace into a bundle",
    "convert": "convert between .gguf and .apr",
    "show": "open a saved bundle in the console, or print it",
    "demo": "write the demonstration pair",
    "doctor": "say what this machine offers",
    "guide": "print one page: how to find a bug by commands alone",
    "completion": "print the completion of a shell: bash, zsh or fish",
    "man": "print the manual page",
}
CONSOLE_EXAMPLES = ("apr-tui", "apr-tui model.gguf", "apr-tui model.gguf --prompt 'Hello there' --theme light")
PAPERS = ("guide", "completion", "man")  # made from these tables; their files are in papers/


@dataclass(frozen=True, slots=True)
class Example:
    """The words behind a command's name, and what they are for."""

    words: str
    about: str


# every example is parsed by a test
EXAMPLES: dict[str, tuple[Example, ...]] = {name: tuple(Example(*row) for row in rows) for name, rows in {
    "trace": (("model.gguf", "the grid, the findings, the next tokens"),
              ("model.gguf --prompt 'Hello there' --out evidence/hello", "the same as a folder to send"),
              ("model.gguf --tokens 1,2,3 --scope last --json", "one document, for a script"),
              ("llama.cpp:model.gguf", "what llama.cpp makes of it")),
    "look": (("model.gguf 3.ffn_swigl", "who carries it, and what stands behind it"),
             ("model.gguf 3.attn_out --json", "one document, with each head's attention")),
    "check": (("model.gguf", "is each stage what float64 makes of its own inputs?"),
              ("model.gguf --compute q8 --prompts prompts.txt --junit check.xml", "of every prompt, for CI"),
              ("evidence/hello --model model.gguf", "the values that a bundle or an import holds")),
    "compare": (("good.gguf bad.gguf", "H1, H2, H3 or why not; H2 names the first place"),
                ("model.gguf llama.cpp:model.gguf", "this forward beside llama.cpp's"),
                ("model.gguf model.gguf@compute=q8", "what 8-bit activations change"),
                ("good.gguf bad.gguf --json --quiet", "one document, for a script")),
    "bisect": (("good.gguf bad.gguf --out evidence/bug", "place, side, ladder of grafts and a reproducer"),),
    "audit": (("model.gguf", "what the file shows by itself"),
              ("model.gguf original/", "beside the folder of config.json and safetensors that it was made from"),
              ("model.gguf --json", "one document, for a script")),
    "kl": (("f16.gguf q4.gguf --tokens 256", "KL over a text, and why the worst tokens differ"),
           ("f16.gguf q4.gguf --corpus text.txt --out kl", "of your text; the same command goes on after a kill"),
           ("model.gguf model.gguf@cache=q8_0/q4_0", "what a quantised KV cache costs, keys and values apart")),
    "damage": (("q4.gguf --original f16.gguf --budget 20000000", "the dearest tensors, and what to raise for 20 MB"),),
    "train": (("--config tiny --steps 40 --out run", "train a small model, with its gates"),
              ("--watch run", "follow a run of another process"), ("--out run --resume", "go on with it")),
    "import": (("dump.npz --model model.gguf --out evidence/theirs", "another tool's values as a bundle"),),
    "convert": (("model.gguf model.apr", "the same weights in the other format"),
                ("model.apr model.gguf --to f16", "types that GGUF lacks become f16")),
    "show": (("evidence/hello", "open it in the console"), ("evidence/hello --json", "its document, for a script")),
    "demo": (("--out pair", "demo.gguf and demo.apr"),
             ("--out pair --fault swap-heads@2.qkv", "the same with a bug in the bytes of demo.apr")),
    "doctor": (("", "device, memory, kernels, terminal, engines, settings"),),
    "guide": (("", "Markdown, for a person or an agent"),
              ("--json", "commands, options and exit codes as one document")),
    "completion": (("bash > ~/.local/share/bash-completion/completions/apr-tui", "for every new bash"),
                   ("zsh > ~/.zfunc/_apr-tui", "in a folder of $fpath"),
                   ("fish > ~/.config/fish/completions/apr-tui.fish", "for every new fish")),
    "man": (("> apr-tui.1", "then: man ./apr-tui.1"),),
}.items()}
A = TypeVar("A")
UNTOLD = ("out", "force", "json", "quiet", "junit", "csv", "text", "help")  # what changes no number


class Command(Protocol):
    """What a command's file has."""

    Arguments: type[Arguments]

    def add_arguments(self, parser: Parser) -> None: ...
    def run(self, arguments: Any) -> int: ...  # noqa: ANN401 (its own Arguments)


def find_command(name: str) -> Command:
    """Load a command's file; import_.py is import's, which no Python file can be called."""
    folder = "papers." if name in PAPERS else ""
    return cast(Command, import_module(f"apr_tui.cli.{folder}{name}{'_' if iskeyword(name) else ''}"))


def command_parser(name: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"apr-tui {name}", description=COMMANDS[name],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    find_command(name).add_arguments(parser)
    parser.epilog = "\n\n".join(part for part in (examples_text(name), parser.epilog) if part)
    return parser


def examples_text(name: str) -> str:
    """The examples of a command, for its help."""
    lines = (f"  {command_line(name, example)}\n      {example.about}" for example in EXAMPLES[name])
    return "\n".join(["examples:", *lines])


def command_line(name: str, example: Example) -> str:
    """An example as it is typed."""
    return f"apr-tui {name} {example.words}".rstrip()


def read_arguments(name: str, words: Sequence[str]) -> Any:  # noqa: ANN401 (the command's own Arguments)
    """Read the words behind a command's name, after those of the user's settings; UsageError."""
    parser = command_parser(name)
    whole = [*settled(parser, words), *words]
    arguments = parser.parse_args(whole, find_command(name).Arguments())
    arguments.command, arguments.words = " ".join(("apr-tui", name, *words)), [name, *words]
    arguments.repeat = normal_form(name, whole)
    return arguments


def settled(parser: Parser, words: Sequence[str]) -> list[str]:
    """The options that the user's config.toml gives a command, as words before its own, which count; UsageError.

    A prompt is fed only where nothing else says what to feed: no option, and no bundle, which has its tokens.
    """
    asked = vars(parser.parse_args(words))  # a wrong word, or --help, comes first
    if asked.get("version") or not parser.taken & {"--theme", "--threshold", "--prompt", "--chat"}:
        return []
    config = read_config()
    sources = [asked[action.dest] for action in parser.actions if not action.option_strings]
    is_fed = asked.get("tokens") is not None or any(os.path.isfile(os.path.join(s, MANIFEST)) for s in sources if s)
    has_text = any(asked.get(name) is not None for name in ("prompt", "prompt_file", "prompts"))
    told = {"--theme": config.theme, "--threshold": config.threshold,
            "--prompt": None if is_fed or has_text else config.prompt, "--chat": None if is_fed else config.chat}
    found = []
    for name, value in told.items():
        if name in parser.taken and value not in (None, False):
            found += [name] if value is True else [f"{name}={OPTIONS[name].write(value)}"]
    return found


def normal_form(name: str, words: Sequence[str]) -> str:
    """The command as a report tells it: files by name, options in order, nothing that changes no number."""
    parser = command_parser(name)
    asked, positional, options = parser.parse_args(words), [], []
    for action in parser.actions:
        value = getattr(asked, action.dest, None)
        if value is None or action.dest in UNTOLD or value == action.default:
            continue
        if not action.option_strings:
            positional.append(_by_name(str(value)))
            continue
        row = OPTIONS.get(action.option_strings[0]) if action.option_strings[0] in parser.taken else None
        written = row.write(value) if row is not None and not isinstance(value, Path) else value
        told = [] if action.nargs == 0 else [written.name if isinstance(written, Path) else str(written)]
        options += [action.option_strings[0], *told]
    return join_words(["apr-tui", name, *positional, *options])


def _by_name(source: str) -> str:
    """A source without its folders: transformers:/a/b@compute=q8 is transformers:b@compute=q8."""
    scheme, colon, rest = source.partition(":")
    named = (rest if colon and scheme in ENGINES else source).rstrip("/").rpartition("/")[2]
    return f"{scheme}:{named}" if colon and scheme in ENGINES else named


def run(name: str, words: Sequence[str]) -> int:
    """Run a command on the words behind its name and return its exit code."""
    arguments = read_arguments(name, words)
    settle_mapping(arguments)
    return find_command(name).run(arguments)


def read_console(words: Sequence[str], arguments: A) -> A:
    """Read the words of the console, after those of the user's settings; UsageError, also for a mistyped command."""
    first = words[0] if words else "-"
    if not (first.startswith("-") or "." in first or os.sep in first or os.path.exists(first)):
        meant = nearest(first, COMMANDS)
        like = f"Did you mean `apr-tui {meant}`? " if meant else ""
        raise UsageError(f"{first!a} is no command and no file. {like}`apr-tui --help` lists the commands.")
    parser = console_parser()
    return parser.parse_args([*settled(parser, words), *words], arguments)


def settle_mapping(arguments: Arguments) -> None:
    """Have this process and its children read model files at once where --no-mmap says so."""
    if getattr(arguments, "no_mmap", False):  # a command that opens no model has no such option
        os.environ[NO_MMAP] = "1"


def console_parser() -> Parser:
    """The parser of the console, which is what runs without a command."""
    commands = "\n".join(f"  {name:<10} {about}" for name, about in COMMANDS.items())
    examples = "\n".join(f"  {line}" for line in CONSOLE_EXAMPLES)
    parser = Parser(
        prog="apr-tui", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Open the console on a model file (.gguf or .apr), or on the built-in demonstration.",
        epilog=f"commands:\n{commands}\n\nexamples:\n{examples}\n\n"
               "`apr-tui COMMAND --help` lists a command's options, with examples.")
    parser.add_argument("MODEL", nargs="?", help="a model file; without one the built-in demonstration")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.take(*CONSOLE, "--theme")
    return parser
