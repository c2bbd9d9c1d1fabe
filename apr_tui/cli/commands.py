"""What each command does: call the door, print its result, return its exit code. The words were read by options.py."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from apr_tui.cli import output as text
from apr_tui.cli.launch import open_console, prompt_of, read_text, source_of
from apr_tui.shutdown import on_signals
from core import session
from core.bundle.report import report_text
from core.bundle.verdicts import bisection_document, check_document, comparison_document
from core.bundle.writer import hold_csv
from core.proof.contract_gates import contract_gates, judge_gates
from core.proof.verdict import EXIT_CODES, Verdict
from core.system.errors import UsageError
from core.system.json_text import to_json
from core.system.progress import Phase
from core.trace.events import CellMeasured, Emit, Event, Start
from core.trace.record import Trace
from core.trace.request import Prompt

TRACED_DIFFERS = 1
# of several prompts the worst counts
SEVERITY = (Verdict.AGREE, Verdict.H1, Verdict.H3, Verdict.INCONCLUSIVE, Verdict.NOT_COMPARABLE, Verdict.H2)
CHECK_SEVERITY = (0, 5, 1)  # exit codes of a check: PASS, INCONCLUSIVE, FAIL
T = TypeVar("T")


def run(command: str, options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command of options.COMMANDS; words are what was typed, for the manifest."""
    options.command, options.words = "apr-tui " + " ".join(words), list(words)
    return RUNS[command](options)


def progress(options: argparse.Namespace) -> Emit:
    """Tell on stderr how far a run is: one line that is rewritten on a terminal, phases only elsewhere."""
    if options.quiet:
        return lambda event: None
    live, n_layer = sys.stderr.isatty(), [0]

    def emit(event: Event) -> None:
        match event:
            case Start():
                n_layer[0] = event.n_layer or 0
            case Phase(text):
                print(f"{text} ...", file=sys.stderr, flush=True)
            case CellMeasured(place=(layer, "output")) if live:
                done = (layer or 0) + 1
                end = "\n" if done == n_layer[0] else "\r"
                print(f"layer {done} of {n_layer[0]}", end=end, file=sys.stderr, flush=True)

    return emit


def wrote(options: argparse.Namespace, path: Path) -> None:
    """Say what stands on the disk; from here on the work is done, and no signal calls it interrupted."""
    on_signals(lambda number, frame: None)
    say(options, f"wrote {path}")


def _trace(options: argparse.Namespace) -> int:
    check_out(options)
    if options.csv is not None:
        hold_csv(options.csv, options.force)
    started = time.monotonic()
    traced = session.trace(
        source_of(options, options.MODEL, options.plant), prompt_of(options) or Prompt(), scope=options.scope,
        layers=options.layers, keep_values=options.values, witness=not options.no_witness,
        generate=options.generate or 0, emit=progress(options))
    findings = session.hints(traced, options.scope, options.threshold)
    if options.out is not None:
        session.export_trace(
            traced, options.out, scope=options.scope, threshold=options.threshold, force=options.force,
            command=options.command, durations={"trace_seconds": time.monotonic() - started})
        wrote(options, options.out)
    if options.csv is not None:
        session.export_csv(traced, options.csv, options.scope)
    shown = [] if options.contract is None else contract_gates(
        read_text(options.contract, "--contract"), str(options.contract), judge_gates(traced))
    sys.stdout.write(text.trace_json(traced, options.scope, findings, shown) + "\n" if options.json
                     else report_text(traced, options.scope, findings, options.threshold) + text.gates_text(shown))
    return TRACED_DIFFERS if is_disturbed(traced) else 0


def is_disturbed(*traces: Trace) -> bool:
    """Say whether watching changed any of these runs."""
    return any(t.observed_equals_unobserved is False for t in traces)


def _check(options: argparse.Namespace) -> int:
    check_out(options)
    source = source_of(options, options.SOURCE, options.plant)
    result = worst_of([
        session.check(source, prompt, model=options.model, generate=options.generate or 0, emit=progress(options))
        for prompt in prompts_of(options)], lambda c: CHECK_SEVERITY.index(c.exit_code))
    if options.out is not None:
        session.export_check(result, options.out, force=options.force, command=options.command)
        wrote(options, options.out)
    sys.stdout.write(to_json(check_document(result)) + "\n" if options.json else text.check_text(result))
    return TRACED_DIFFERS if is_disturbed(result.trace) else result.exit_code


def _compare(options: argparse.Namespace) -> int:
    check_out(options)
    a, b = source_of(options, options.A, options.plant), source_of(options, options.B)
    result = worst_of([
        session.compare(a, b, prompt, scope=options.scope, threshold=options.threshold, keep_values=options.values,
                        emit=progress(options))
        for prompt in prompts_of(options)], lambda c: SEVERITY.index(c.verdict))
    if options.out is not None:
        session.export_comparison(
            result, options.out, threshold=options.threshold, force=options.force, command=options.command)
        wrote(options, options.out)
    sys.stdout.write(to_json(comparison_document(result)) + "\n" if options.json else text.comparison_text(result))
    return TRACED_DIFFERS if is_disturbed(result.a, result.b) else EXIT_CODES[result.verdict]


def prompts_of(options: argparse.Namespace) -> list[Prompt | None]:
    """The prompts to judge on: one a line of --prompts, else the one that the other options give."""
    if options.prompts is None:
        return [prompt_of(options)]
    if prompt_of(options) is not None and not options.chat:
        raise UsageError("--prompts gives the prompts; it does not go with --prompt, --prompt-file or --tokens.")
    lines = [line for line in read_text(options.prompts, "--prompts").split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"--prompts {options.prompts} holds no prompt; one a line is needed.")
    return [Prompt(text=line, chat=options.chat) for line in lines]


def worst_of(results: Sequence[T], severity: Callable[[T], int]) -> T:
    """The result that counts: the first of the most severe."""
    return max(results, key=severity)


def _bisect(options: argparse.Namespace) -> int:
    check_out(options)
    a, b = source_of(options, options.A, options.plant), source_of(options, options.B)
    result = session.bisect(
        a, b, prompt_of(options), scope=options.scope, threshold=options.threshold, emit=progress(options))
    if options.out is not None:
        session.export_bisection(
            result, options.out, threshold=options.threshold, force=options.force, command=options.command)
        wrote(options, options.out)
    sys.stdout.write(to_json(bisection_document(result)) + "\n" if options.json else text.bisection_text(result))
    pair = result.comparison
    return TRACED_DIFFERS if is_disturbed(pair.a, pair.b) else EXIT_CODES[pair.verdict]


def _import(options: argparse.Namespace) -> int:
    check_out(options)
    traced = session.import_trace(
        Path(options.SRC), scope=options.scope, tokens=options.tokens, definition=options.definition)
    scope = options.scope or (traced.facts.scopes or ("all",))[0]
    session.export_trace(traced, options.out, scope=scope, threshold=options.threshold, force=options.force,
                         command=options.command)
    findings = session.hints(traced, scope, options.threshold)
    sys.stdout.write(text.trace_json(traced, scope, findings) + "\n" if options.json
                     else report_text(traced, scope, findings, options.threshold))
    wrote(options, options.out)
    return 0


def _convert(options: argparse.Namespace) -> int:
    for note in session.convert(Path(options.IN), Path(options.OUT), to=options.to, force=options.force):
        say(options, f"note: {note}")
    wrote(options, options.OUT)
    return 0


def _show(options: argparse.Namespace) -> int:
    bundle = Path(options.BUNDLE)
    if not (options.text or options.json):
        return open_console(options, bundle)
    traced = session.open_bundle(bundle)
    scope = options.scope or (traced.facts.scopes or ("all",))[0]
    findings = session.hints(traced, scope, options.threshold)
    sys.stdout.write(text.trace_json(traced, scope, findings) + "\n" if options.json
                     else report_text(traced, scope, findings, options.threshold))
    return 0


def _demo(options: argparse.Namespace) -> int:
    for path in session.write_demo(options.out, fault=options.fault, force=options.force):
        print(path)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from apr_tui.cli.doctor import doctor_facts, doctor_text

    facts = doctor_facts()
    sys.stdout.write(to_json(facts) + "\n" if options.json else doctor_text(facts))
    return 0


def _train(options: argparse.Namespace) -> int:
    from apr_tui.cli.train import run_train

    return run_train(options)


def check_out(options: argparse.Namespace) -> None:
    """Refuse an output that cannot be written before the work, not after it."""
    if options.out is not None:
        session.check_out(options.out, force=options.force)


def say(options: argparse.Namespace, message: str) -> None:
    """A message on stderr, unless --quiet."""
    if not options.quiet:
        print(message, file=sys.stderr, flush=True)


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    "trace": _trace, "check": _check, "compare": _compare, "bisect": _bisect,
    "import": _import, "convert": _convert, "show": _show,
    "demo": _demo, "doctor": _doctor, "train": _train,
}
