"""The options that several commands or the console take, as one table. It runs nothing.

What an option sets is the field of the same name of Source, Prompt or RunOptions (core.trace.request), else of the
command's own Arguments.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from apr_tui.palette import PALETTES
from core.model.stages import parse_scope, read_number, read_whole
from core.system.errors import UsageError
from core.system.limits import BATCH, THREADS

R = TypeVar("R")
THEMES = ("auto", *PALETTES)
LIKE = 0.7  # of two words, from which on one may be meant where the other was typed


def read_tokens(text: str) -> tuple[int, ...]:
    """Read 1,2,3."""
    ids = [read_whole(part.strip(" ")) for part in text.split(",")]
    known = tuple(id for id in ids if id is not None)
    if len(known) < len(ids):
        raise argparse.ArgumentTypeError(f"{text!r}: ids such as 1,2,3 are needed, in digits 0 to 9")
    return known


def read_layers(text: str) -> tuple[int, int]:
    """Read A..B."""
    start, stop = (read_whole(part) for part in (text.split("..") if text.count("..") == 1 else ("", "")))
    if start is None or stop is None or stop <= start:
        raise argparse.ArgumentTypeError(f"{text!r}: A..B with A < B is needed, B excluded")
    return start, stop


def read_scope(text: str) -> str:
    """Read the name of a scope."""
    try:
        return parse_scope(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_theme(text: str) -> str:
    """Read the name of a palette, or auto."""
    if text not in THEMES:
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(THEMES)} is needed")
    return text


def read_threshold(text: str) -> float:
    """Read a ratio above 1."""
    return _read_above(text, 1)


def read_positive(text: str) -> float:
    """Read a number above 0."""
    return _read_above(text, 0)


def _read_above(text: str, least: int) -> float:
    value = read_number(text)
    if value is None or value <= least:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above {least} is needed")
    return value


def read_count(text: str) -> int:
    """Read a whole number from 1."""
    count = read_whole(text)
    if not count:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 is needed")
    return count


def read_threads(text: str) -> int:
    """Read a number of threads."""
    return _read_within(text, THREADS)


def read_batch(text: str) -> int:
    """Read a number of sequences a step."""
    return _read_within(text, BATCH)


def _read_within(text: str, most: int) -> int:
    count = read_whole(text)
    if not count or count > most:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to {most} is needed")
    return count


@dataclass(frozen=True, slots=True)
class Option:
    """One option: a flag where it has no metavar. write: what read reads back, for the command that repeats a run.

    field: what it sets, where that is not its own name. alone: its value where none follows it. no: its opposite.
    offered: values that a shell offers.
    """

    about: str
    metavar: str | None = None
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    default: Any = None
    field: str | None = None
    alone: Any = None
    no: str = ""
    offered: tuple[str, ...] = ()


# in the order in which a repeated command has them
OPTIONS: dict[str, Option] = {
    "--tokens": Option("feed these token ids", "1,2,3", read_tokens, lambda ids: ",".join(map(str, ids))),
    "--prompt": Option('text to feed (default "What is 2+2?")', "TEXT"),
    "--prompt-file": Option("take the text from a file; one trailing newline is dropped", "FILE", Path),
    "--compute": Option("f32 (default), q8 (activations in 8 bits as ggml), bf16 or f16 (Inf above 65504)", "KIND",
                        default="f32", offered=("f32", "q8", "bf16", "f16")),
    "--device": Option("auto, cpu, cuda or cuda:N", "DEVICE", default="auto", offered=("auto", "cpu", "cuda")),
    "--threads": Option(f"threads to multiply with, 1 to {THREADS}", "N", read_threads),
    "--plant": Option("plant a bug in a value (side A)", "KIND@LAYER.STAGE"),
    "--scope": Option("all, last, first, rest or pos:N", "SCOPE", read_scope, default="all",
                      offered=("all", "last", "first", "rest")),
    "--threshold": Option("ratio that makes a spike (default 10)", "X", read_threshold, "{:g}".format, default=10.0),
    "--generate": Option("then generate N tokens (alone: 8)", "N", read_count, default=0, alone=8),
    "--chat": Option("put the text through the file's chat template", no="--no-chat"),
    "--layers": Option("watch layers A to B - 1 only", "A..B", read_layers, "{0[0]}..{0[1]}".format),
    "--values": Option("keep the values of every stage in the bundle", field="keep_values"),
    "--no-mmap": Option("read the model into memory at once: another program may cut or change the file meanwhile"),
    "--prompts": Option("one prompt per line; the worst verdict counts", "FILE", Path),
    "--out": Option("write the evidence there", "DIR", Path),
    "--force": Option("replace what is there"),
    "--junit": Option("write the verdict as JUnit XML, for CI", "FILE", Path),
    "--json": Option("one JSON document on stdout"),
    "--quiet": Option("no progress on stderr"),
    "--theme": Option("dark, light or ansi (default: the terminal is asked)", "NAME", read_theme, default="auto",
                      offered=THEMES),
}
FEED = ("--prompt", "--prompt-file", "--tokens", "--chat")
RUN = ("--device", "--compute", "--threads", "--no-mmap", "--plant", "--scope", "--threshold")
JUNIT = ("--junit",)
OUT = ("--out", "--force", "--json", "--quiet")
CONSOLE = (*FEED, *RUN, "--layers", "--generate")


class Arguments:
    """Arguments of every command. command: the whole line, for the manifest; words: as they were typed.

    repeat: the command that gives the same numbers, in normal form.
    """

    command: str
    repeat: str
    words: list[str]


class FeedArguments(Arguments):
    """The options of FEED."""

    prompt: str | None
    prompt_file: Path | None
    tokens: tuple[int, ...] | None
    chat: bool


class RunArguments(FeedArguments):
    """The options of FEED and RUN; those of RunOptions are read from it as that record."""

    device: str
    compute: str
    threads: int | None
    no_mmap: bool
    plant: str | None


class OutArguments(Arguments):
    """The options of OUT."""

    out: Path | None
    force: bool
    json: bool
    quiet: bool


class JudgeArguments(OutArguments):
    """The options of OUT and JUNIT."""

    junit: Path | None


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, so that every refusal is a UsageError. taken: the options of the table."""

    def __init__(self, **told: Any) -> None:  # noqa: ANN401 (as argparse)
        super().__init__(allow_abbrev=False, **told)
        self.taken: set[str] = set()

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, with the option that a mistyped one is like."""
        typed = message.partition("unrecognized arguments: ")[2].split()
        wrong = next((word.partition("=")[0] for word in typed if word.startswith("--")), "")
        meant = nearest(wrong, (flag for action in self.actions for flag in action.option_strings))
        like = f" Did you mean {meant}?" if meant else ""
        raise UsageError(f"{message.removesuffix('.')}.{like} `{self.prog} --help` lists what there is.")

    def print_help(self, file: Any = None) -> None:  # noqa: ANN401 (as argparse)
        """Print the help, and fail where it cannot be written: argparse says nothing."""
        (file or sys.stdout).write(self.format_help())
        (file or sys.stdout).flush()

    @property
    def actions(self) -> list[argparse.Action]:
        """What the command takes, in order; argparse has no public name for it."""
        return self._actions

    def take(self, *names: str, **changes: Any) -> None:  # noqa: ANN401 (as argparse)
        """Add options of the table, with this command's changes to what argparse is given."""
        for name in names:
            no = OPTIONS[name].no
            self.add_argument(name, *([no] if no else []), **_told(OPTIONS[name]) | changes)
        self.taken.update(names)


class _Switch(argparse.Action):
    """A flag with an opposite: the last one counts."""

    def __init__(self, option_strings: Sequence[str], dest: str, **told: Any) -> None:  # noqa: ANN401 (as argparse)
        super().__init__(option_strings, dest, nargs=0, **told)

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is like; None where it is like none."""
    found = difflib.get_close_matches(word, list(known), 1, LIKE)
    return found[0] if found else None


def _told(option: Option) -> dict[str, Any]:
    told: dict[str, Any] = {"help": option.about} | ({"dest": option.field} if option.field else {})
    if option.metavar is None:
        return told | ({"action": _Switch, "default": False} if option.no else {"action": "store_true"})
    told |= {"metavar": option.metavar, "type": option.read, "default": option.default}
    return told | ({"nargs": "?", "const": option.alone} if option.alone is not None else {})


def record_of(kind: type[R], arguments: object, **changes: Any) -> R:  # noqa: ANN401 (the record's own types)
    """Make a record of the arguments that are called as its fields are."""
    known = {f.name: getattr(arguments, f.name) for f in fields(kind) if hasattr(arguments, f.name)}  # type: ignore[arg-type]
    return kind(**known | changes)
