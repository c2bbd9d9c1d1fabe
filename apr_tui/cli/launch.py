"""Turn the options into what to run: prompt, source, and the console itself; no numpy: the first paint waits for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.system.errors import FileError, UsageError, os_reason
from core.trace.request import Prompt, Source, parse_source


def open_console(options: argparse.Namespace, bundle: Path | None = None) -> int:
    """Open the console on a model, a bundle or the demonstration; UsageError without a terminal."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError(
            "the console needs a terminal on stdin, stdout and stderr. Use `apr-tui trace MODEL` without one.")
    from apr_tui.app import run_console
    from apr_tui.request import Request

    if bundle is not None:
        return run_console(Request(bundle=bundle, scope=options.scope or "all", threshold=options.threshold))
    prompt = prompt_of(options) or Prompt()
    return run_console(Request(
        path=Path(options.MODEL) if options.MODEL else None, compute=options.compute, device=options.device,
        threads=options.threads, plant=options.plant, prompt=prompt.text, tokens=prompt.tokens, chat=prompt.chat,
        layers=options.layers, generate=options.generate or 0, scope=options.scope, threshold=options.threshold))


def prompt_of(options: argparse.Namespace) -> Prompt | None:
    """The prompt that the options give, None where they give none; UsageError where they give two."""
    given = [n for n in ("prompt", "prompt_file", "tokens") if getattr(options, n) is not None]
    if len(given) > 1:
        raise UsageError(
            f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} both say what to feed; give one.")
    if options.tokens is not None and options.chat:
        raise UsageError("--chat puts text through a template; it does not go with --tokens.")
    words = options.prompt
    if options.prompt_file is not None:
        words = read_text(options.prompt_file, "--prompt-file").removesuffix("\n")
    if not given and not options.chat:
        return None
    return Prompt(text=Prompt().text if words is None else words, tokens=options.tokens, chat=options.chat)


def source_of(options: argparse.Namespace, name: str, plant: str | None = None) -> Source:
    """One side of the command line: its own settings, then the common options."""
    default = Source(Path(), compute=options.compute, device=options.device, threads=options.threads, plant=plant)
    return parse_source(name, default)


def read_text(path: Path, option: str) -> str:
    """Read a UTF-8 text file that an option names; FileError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{option} {path}: {os_reason(error)}. A UTF-8 text file is needed.") from error
