"""Describe the command line: one table of options, and which command takes which. It runs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core.model.stages import parse_scope, read_number, read_whole
from core.system.errors import UsageError

SEED_DIGITS = 19  # of 2^63 - 1, the largest

if TYPE_CHECKING:
    from core.train.config import TrainOptions


def _tokens(text: str) -> tuple[int, ...]:
    ids = [read_whole(part.strip(" ")) for part in text.split(",")]
    known = tuple(id for id in ids if id is not None)
    if len(known) < len(ids):
        raise argparse.ArgumentTypeError(f"{text!r}: ids such as 1,2,3 are needed, in digits 0 to 9")
    return known


def _layers(text: str) -> tuple[int, int]:
    start, stop = (read_whole(part) for part in (text.split("..") if text.count("..") == 1 else ("", "")))
    if start is None or stop is None or stop <= start:
        raise argparse.ArgumentTypeError(f"{text!r}: A..B with A < B is needed, B excluded")
    return start, stop


def _scope(text: str) -> str:
    try:
        return parse_scope(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threshold(text: str) -> float:
    value = read_number(text)
    if value is None or value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 1 is needed")
    return value


def _count(text: str) -> int:
    count = read_whole(text)
    if not count:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 is needed")
    return count


def _positive(text: str) -> float:
    value = read_number(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed")
    return value


def _seed(text: str) -> int:
    seed = read_whole(text, SEED_DIGITS)
    if seed is None:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 is needed")
    return seed


# option -> what argparse is told
OPTIONS: dict[str, dict[str, Any]] = {
    "--prompt": {"metavar": "TEXT", "help": 'text to feed (default "What is 2+2?")'},
    "--prompt-file": {"metavar": "FILE", "type": Path,
                      "help": "take the text from a file; one trailing newline is dropped"},
    "--tokens": {"metavar": "1,2,3", "type": _tokens, "help": "feed these token ids"},
    "--chat": {"action": "store_true", "help": "put the text through the file's chat template"},
    "--device": {"default": "auto", "metavar": "DEVICE", "help": "auto, cpu, cuda or cuda:N"},
    "--compute": {"default": "f32", "metavar": "KIND",
                  "help": "f32 (default), q8 (activations in 8 bits as ggml), bf16, or f16 (Inf above 65504)"},
    "--threads": {"type": _count, "metavar": "N", "help": "threads to multiply with"},
    "--plant": {"metavar": "KIND@LAYER.STAGE", "help": "plant a bug in a value (side A)"},
    "--scope": {"type": _scope, "default": "all", "metavar": "SCOPE", "help": "all, last, first, rest or pos:N"},
    "--threshold": {"type": _threshold, "default": 10.0, "metavar": "X",
                    "help": "ratio that makes a spike (default 10)"},
    "--layers": {"type": _layers, "metavar": "A..B", "help": "watch layers A to B - 1 only"},
    "--generate": {"type": _count, "nargs": "?", "const": 8, "metavar": "N",
                   "help": "then generate N tokens (alone: 8)"},
    "--out": {"type": Path, "metavar": "DIR", "help": "write the evidence there"},
    "--force": {"action": "store_true", "help": "replace what is there"},
    "--values": {"action": "store_true", "help": "keep the values of every stage in the bundle"},
    "--no-witness": {"action": "store_true", "help": "do not run the untraced witness beside it"},
    "--csv": {"type": Path, "metavar": "FILE", "help": "write the grid as CSV"},
    "--json": {"action": "store_true", "help": "one JSON document on stdout"},
    "--quiet": {"action": "store_true", "help": "no progress on stderr"},
    "--model": {"type": Path, "metavar": "FILE",
                "help": "the file whose weights a bundle's values are checked against"},
    "--contract": {"type": Path, "metavar": "FILE",
                   "help": "judge the falsification tests of a published contract (YAML)"},
    "--prompts": {"type": Path, "metavar": "FILE", "help": "one prompt per line; the worst verdict counts"},
    "--definition": {"choices": ("sample", "population"), "help": "how the table's std was taken"},
    "--fault": {"metavar": "KIND@LAYER.STAGE", "help": "plant a bug in the bytes of demo.apr"},
    "--to": {"choices": ("f16", "f32"), "help": "dequantise the types that the other format lacks"},
    "--text": {"action": "store_true", "help": "print it instead of opening the console"},
    "--config": {"metavar": "NAME", "help": "model and run: tiny (default), 370m or FILE.toml"},
    "--corpus": {"type": Path, "metavar": "DIR", "help": "text or token shards (default: Python's own library)"},
    "--tokenizer": {"type": Path, "metavar": "DIR", "help": "vocab.json and merges.txt (default: one is trained)"},
    "--steps": {"type": _count, "metavar": "N", "help": "number of optimizer steps"},
    "--batch": {"type": _count, "metavar": "B", "help": "sequences per step"},
    "--seq": {"type": _count, "metavar": "S", "help": "tokens per sequence"},
    "--steps-per-epoch": {"type": _count, "metavar": "E", "help": "steps between validations"},
    "--mode": {"choices": ("from-scratch", "finetune"), "help": "sets rate, warm-up, target and cap together"},
    "--init": {"type": Path, "metavar": "FILE", "help": "the model to finetune"},
    "--seed": {"type": _seed, "metavar": "N", "help": "seed of the weights and of the order of the data (default 42)"},
    "--lr": {"type": _positive, "metavar": "X", "help": "peak learning rate, instead of the mode's"},
    "--warm-up": {"type": _count, "metavar": "N", "help": "steps of linear warm-up"},
    "--checkpoint-every": {"type": _count, "metavar": "N", "help": "steps between checkpoints (default: an epoch)"},
    "--grads-every": {"type": _count, "metavar": "N", "help": "steps between gradient tables"},
    "--budget-ms": {"type": _positive, "metavar": "X", "help": "budget of a step for GATE-GPUTRAIN-004"},
    "--parallel": {"choices": ("auto", "ddp", "fsdp2"), "default": "auto", "help": "how processes share the work"},
    "--compile": {"choices": ("auto", "on", "off"), "default": "auto", "help": "compile the model's parts"},
    "--resume": {"action": "store_true", "help": "continue the run in --out"},
    "--oracle": {"action": "store_true", "help": "check the first step's gradients against float64"},
    "--watch": {"type": Path, "metavar": "DIR", "help": "follow a run that another process writes"},
    "--detach": {"action": "store_true", "help": "keep training after this terminal closes"},
}
_FEED = ("--prompt", "--prompt-file", "--tokens", "--chat")
_RUN = ("--device", "--compute", "--threads", "--plant", "--scope", "--threshold")
_OUT = ("--out", "--force", "--json", "--quiet")
_TRAIN = ("--config", "--corpus", "--tokenizer", "--steps", "--batch", "--seq", "--steps-per-epoch", "--mode", "--init",
          "--device", "--seed", "--resume", "--out", "--lr", "--warm-up", "--checkpoint-every", "--grads-every",
          "--budget-ms", "--parallel", "--compile", "--threads", "--oracle", "--watch", "--detach", "--json", "--quiet")

# command -> (help, positional arguments, options)
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "trace": ("trace a model file: the grid, findings, next tokens", ("MODEL",),
              (*_FEED, *_RUN, "--layers", "--generate", *_OUT, "--values", "--no-witness", "--csv", "--contract")),
    "check": ("check a source against float64 on its own inputs", ("SOURCE",),
              (*_FEED, "--prompts", *_RUN, "--generate", *_OUT, "--model")),
    "compare": ("judge B against A: H1, H2, H3 or why not", ("A", "B"),
                (*_FEED, "--prompts", *_RUN, *_OUT, "--values")),
    "bisect": ("name the first place, the wrong side, and prove it by a ladder of grafts", ("A", "B"),
               (*_FEED, *_RUN, *_OUT)),
    "train": ("step a training run, with its gates and checkpoints that can be traced", (), _TRAIN),
    "import": ("turn another tool's trace into a bundle", ("SRC",),
               ("--out", "--force", "--scope", "--tokens", "--definition", "--threshold", "--json", "--quiet")),
    "convert": ("convert between .gguf and .apr", ("IN", "OUT"), ("--to", "--force", "--quiet")),
    "show": ("open a saved bundle in the console, or print it", ("BUNDLE",),
             ("--text", "--scope", "--threshold", "--json")),
    "demo": ("write the demonstration pair", (), ("--out", "--fault", "--force", "--quiet")),
    "doctor": ("say what this machine offers", (), ("--json",)),
}
CONSOLE = (*_FEED, *_RUN, "--layers", "--generate")
REQUIRED = {"import": ("--out",), "demo": ("--out",)}
UNSET = {"import": {"--scope": None}, "show": {"--scope": None}}  # where a default would claim what nobody said


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, so that every refusal leaves by one door."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UsageError(f"{message.removesuffix('.')}. `{self.prog} --help` lists what there is.")


def command_parser(command: str) -> Parser:
    """The parser of one command."""
    about, positionals, options = COMMANDS[command]
    parser = Parser(prog=f"apr-tui {command}", description=about, allow_abbrev=False)
    for name in positionals:
        parser.add_argument(name)
    _add_options(parser, options, REQUIRED.get(command, ()), UNSET.get(command, {}))
    return parser


def console_parser() -> Parser:
    """The parser of the console, which is what runs without a command."""
    commands = "\n".join(f"  {name:<9} {about}" for name, (about, _, _) in COMMANDS.items())
    parser = Parser(
        prog="apr-tui", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Open the console on a model file (.gguf or .apr), or on the built-in demonstration.",
        epilog=f"commands:\n{commands}\n\n`apr-tui COMMAND --help` lists a command's options.")
    parser.add_argument("MODEL", nargs="?")
    parser.add_argument("--version", action="store_true", help="print the version")
    _add_options(parser, CONSOLE, (), {})
    return parser


def train_options(options: argparse.Namespace) -> TrainOptions:
    """Turn parsed words into the record that core takes."""
    from core.train.config import TrainOptions  # it loads numpy

    return TrainOptions(**{f.name: getattr(options, f.name) for f in fields(TrainOptions) if hasattr(options, f.name)})


def _add_options(
    parser: Parser, options: tuple[str, ...], required: tuple[str, ...], unset: Mapping[str, None]
) -> None:
    for name in options:
        told = dict(OPTIONS[name])
        if name in required:
            told["required"] = True
        if name in unset:
            told["default"] = None
        parser.add_argument(name, **told)
