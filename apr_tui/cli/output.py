"""Write results as plain text and as JSON documents, for stdout. It computes nothing and opens nothing."""

from __future__ import annotations

from collections.abc import Sequence

from core import session
from core.bundle.report import WITNESS, report_text, wrapped
from core.bundle.verdicts import bisection_document, check_document, comparison_document
from core.model.stages import GRID_STAGES, place_text
from core.proof.check_result import Check
from core.proof.contract_gates import gate_rows
from core.proof.verdict import Bisection, Comparison
from core.system.json_text import to_json
from core.system.outcome import Gate
from core.system.safe_text import safe_text
from core.trace.finding import Finding
from core.trace.grid import value
from core.trace.record import Trace
from core.trace.request import RunOptions

TRACED_DIFFERS = 1  # the exit code where watching changed a run


def is_disturbed(*traces: Trace) -> bool:
    """Say whether watching changed any of these runs."""
    return any(t.observed_equals_unobserved is False for t in traces)


def scope_shown(trace: Trace, asked: str | None) -> str:
    """The scope that was asked for, else the first that a saved trace has."""
    return asked or (trace.facts.scopes or ("all",))[0]


def saved_text(trace: Trace, options: RunOptions, *, as_json: bool) -> str:
    """A trace that was read and not run, with its hints: the document of `trace --json`, or the report."""
    findings = session.hints(trace, options.scope, options.threshold)
    if as_json:
        return trace_json(trace, options.scope, findings) + "\n"
    return report_text(trace, options.scope, findings, options.threshold)


def trace_json(trace: Trace, scope: str, findings: Sequence[Finding], gates: Sequence[Gate] = ()) -> str:
    """The document of `trace --json`."""
    layers = range(trace.n_layer)
    return to_json({
        "schema": "apr-tui/1", "model": trace.name, "tokens": [{"id": t.id, "text": t.text} for t in trace.tokens],
        "scope": scope, "grid": {s: [value(trace.cells, (i, s), scope, "std") for i in layers] for s in GRID_STAGES},
        "findings": list(findings), "top": list(trace.top), "generated": trace.generated,
        "observed_equals_unobserved": trace.observed_equals_unobserved, "planted": trace.planted,
        "notes": list(trace.notes),
    } | ({"gates": gate_rows(gates)} if gates else {}))


def gates_text(gates: Sequence[Gate]) -> str:
    """A line a gate; "" where there is none."""
    return "".join(f"{g.verdict:<12} {safe_text(g.id)}: {safe_text(g.measured)}\n" for g in gates)


def judged_text(judged: Comparison | Check | Bisection, *, as_json: bool) -> str:
    """A verdict that was read from its folder, as the command that found it said it."""
    match judged:
        case Check():
            return to_json(check_document(judged)) + "\n" if as_json else check_text(judged)
        case Bisection():
            return to_json(bisection_document(judged)) + "\n" if as_json else bisection_text(judged)
        case Comparison():
            return to_json(comparison_document(judged)) + "\n" if as_json else comparison_text(judged)


def comparison_text(c: Comparison) -> str:
    """The verdict, its reasons and its numbers, for a person."""
    names = [safe_text(name) for name in c.names]
    of_one = f", {safe_text(c.a.name)}" if c.names != (c.a.name, c.b.name) else ""
    lines = [f"A {names[0]} against B {names[1]}{of_one}"]
    lines += wrapped(f"files: {safe_text(text)}" for text in c.files).splitlines()
    lines += [f"PLANTED {safe_text(t.planted)} in {name}" for name, t in (("A", c.a), ("B", c.b)) if t.planted]
    lines.append(f"{c.verdict}: {c.meaning}")
    if c.first is not None:
        side = f"; side {c.side} is wrong" if c.side else ""
        where = f", token {c.token}, channel {c.channel}" if c.token is not None else ""
        lines.append(f"first: {place_text(c.first)}{where}{side}")
    if c.measured is not None:
        floor = f", floor {c.floor:.3g}, {c.multiple:.3g} x" if c.floor is not None and c.multiple is not None else ""
        lines.append(f"measured: {c.broken or f'relative L2 {c.measured:.3g}{floor}'}")
    return "\n".join(lines) + "\n" + wrapped(f"- {safe_text(r)}" for r in c.reasons)


def check_text(check: Check) -> str:
    """The verdict of a check, its reasons and its numbers, for a person."""
    lines = [f"{check.verdict}  {safe_text(check.trace.name)}"]
    if check.trace.planted:
        lines.insert(0, f"PLANTED {safe_text(check.trace.planted)}")
    control = f"Traced equals untraced: {WITNESS[check.trace.observed_equals_unobserved]}"
    return wrapped([*lines, *(f"- {safe_text(r)}" for r in check.reasons), control])


def bisection_text(result: Bisection) -> str:
    """The verdict, the one sentence, and the ladder of grafts."""
    lines = [comparison_text(result.comparison).rstrip("\n"), wrapped([safe_text(result.sentence)]).rstrip("\n")]
    if result.ladder:
        lines.append(f"grafts of B into A (KL of the logits without one: {result.ladder.kl:.3g} nats):")
        lines += [f"  {place_text(r.place):<16} brings back {r.recovered:>7.1%}  KL {r.kl:.3g}"
                  for r in result.ladder.rungs]
    return "\n".join(lines) + "\n"
