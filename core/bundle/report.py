"""Write a trace as text for a person: plain (report.txt, show --text) and Markdown. No time, path or command in it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from core.bundle.grid_text import LINE_WIDTH, grid_text
from core.model.stages import place_text
from core.system.safe_text import safe_text
from core.trace.finding import Finding
from core.trace.record import Trace

MAX_TOKENS = 32  # listed; the rest stands in manifest.json
WITNESS = {True: "yes, bit for bit", False: "NO: watching changed the result", None: "NOT_MEASURED"}
BOLD = "X!"
GLUE = "\x00"  # a space where no line may break; safe_text lets no other through


def report_text(trace: Trace, scope: str, findings: Sequence[Finding], threshold: float = 10.0) -> str:
    """Write the report: grid, findings, next tokens, input, witness, notes."""
    sections = [grid_text(trace, scope, findings, threshold), findings_text(findings)]
    sections += [text for text in (top_text(trace), tokens_text(trace)) if text]
    closing = [f"Traced equals untraced: {WITNESS[trace.observed_equals_unobserved]}", _facts_line(trace)]
    closing += [f"Note: {safe_text(note)}" for note in trace.notes]
    return "\n".join([*sections, wrapped(closing)])


def findings_text(findings: Sequence[Finding]) -> str:
    """List the findings, a sentence each, in order."""
    if not findings:
        return "Findings: none.\n"
    lines = [f"{i:>3}. {f.kind} at {place_text(f.place)}, scope {f.scope} ({f.strength}): {safe_text(f.sentence)}"
             for i, f in enumerate(findings, 1)]
    return "Findings, first the one to look at:\n" + wrapped(lines, indent=5)


def top_text(trace: Trace) -> str:
    """List the likeliest next tokens and the generated text; "" where the run has neither."""
    lines = [f"  {_quoted(t.text):<24} id {t.id:<8} logit {t.logit:.4f}" for t in trace.top]
    text = "Next token:\n" + "\n".join(lines) + "\n" if lines else ""
    return text + (f"Generated: {_quoted(trace.generated)}\n" if trace.generated is not None else "")


def tokens_text(trace: Trace) -> str:
    """List the input's tokens with their positions and ids; "" where they are unknown."""
    if not trace.tokens:
        return ""
    words = [f"{i}:{t.id}" + (f" {_quoted(t.text)}" if t.text is not None else "") for i, t in enumerate(trace.tokens)]
    more = [f"and {len(words) - MAX_TOKENS} more in manifest.json"] if len(words) > MAX_TOKENS else []
    kept = [word.replace(" ", GLUE) for word in words[:MAX_TOKENS]]
    return wrapped(["Tokens: " + "  ".join(kept + more)]).replace(GLUE, " ")


def wrapped(lines: Iterable[str], indent: int = 2) -> str:
    """Break each line at its spaces, LINE_WIDTH wide; what follows of it is indented. A longer word stays whole."""
    rest = " " * indent
    parts = (textwrap.wrap(line, LINE_WIDTH, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)
             or [""] for line in lines)
    return "".join(f"{part}\n" for some in parts for part in some)


def _facts_line(trace: Trace) -> str:
    facts = trace.facts
    names = ("engine", "arch", "compute", "device", "threads", "kernel", "dtype", "definition")
    known = [f"{name} {safe_text(str(getattr(facts, name)))}" for name in names if getattr(facts, name) is not None]
    unknown = [name for name in names if getattr(facts, name) is None]
    return "Taken with: " + ", ".join(known) + (f"; unknown: {', '.join(unknown)}" if unknown else "")


def _quoted(text: str | None) -> str:
    return "-" if text is None else "'" + safe_text(text) + "'"
