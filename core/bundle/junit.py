"""Write a verdict as JUnit XML, which every CI shows: a case for the verdict, and one a place that was judged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as xml

from core.audit.audit_file import Audit
from core.audit.finding import Strength
from core.damage.run_kl import KlResult
from core.model.stages import place_order, place_text
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison, Verdict
from core.system.atomic_file import new_file, refuse_foreign
from core.system.outcome import Outcome
from core.system.safe_text import safe_text
from core.trace.measures import State

START = b"<?xml version='1.0' encoding='utf-8'?>\n<testsuites name=\"apr-tui\""
Reported = Comparison | Check | Bisection | Audit | KlResult
KINDS: dict[str, str] = {Verdict.H2: "failure", Outcome.FAIL: "failure", Verdict.INCONCLUSIVE: "error",
                         Verdict.NOT_COMPARABLE: "error"}  # of a case; any other verdict passes


@dataclass(frozen=True, slots=True)
class _Told:
    """What a suite says. kind: of its case "verdict"; places: name, kind and message of the others."""

    name: str
    kind: str
    verdict: str
    text: str
    places: Iterable[tuple[str, str, str]]


def validate_junit(path: Path, force: bool) -> None:
    """Refuse to replace a file that is no report of ours, before the work; UsageError, OutputError."""
    refuse_foreign(path, force, START, "--junit", "report")


def write_junit(path: Path, judged: Sequence[Reported]) -> None:
    """Write a suite for each verdict; OutputError."""
    root = xml.Element("testsuites", name="apr-tui")
    for i, verdict in enumerate(judged):
        _suite(root, verdict, f" {i + 1}" if len(judged) > 1 else "")
    xml.indent(root)
    with new_file(Path(os.path.realpath(path)), force=True) as part:
        part.write_bytes(xml.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _suite(root: xml.Element, judged: Reported, number: str) -> None:
    told = _told(judged)
    suite = xml.SubElement(root, "testsuite", name=safe_text(told.name + number))
    _case(suite, "verdict", told.kind, told.verdict, told.text)
    for place, kind, message in told.places:
        _case(suite, place, kind, message)
    for count, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))


def _told(judged: Reported) -> _Told:
    match judged:
        case Audit():
            proofs = judged.proofs
            return _Told(f"audit {judged.name}", "failure" if proofs else "", f"{len(proofs)} proofs",
                         "\n".join(f.sentence for f in proofs), _findings(judged))
        case KlResult():
            return _Told(f"kl {judged.a} with {judged.b}", "", "measured", f"{judged.summary.mean} nats a token", ())
        case Check():
            return _Told(f"check {judged.trace.name}", KINDS.get(judged.verdict, ""), str(judged.verdict),
                         "\n".join(judged.reasons), _check_places(judged))
        case _:
            pair = judged.comparison if isinstance(judged, Bisection) else judged
            return _Told(f"compare {' with '.join(pair.names)}", KINDS.get(pair.verdict, ""), str(pair.verdict),
                         "\n".join(pair.reasons), _pair_places(pair))


def _findings(audit: Audit) -> Iterable[tuple[str, str, str]]:
    """A case a finding: a proof fails, a hint is for a person to weigh."""
    for finding in audit.findings:
        kind = "failure" if finding.strength is Strength.PROOF else "skipped"
        yield f"{finding.kind} {finding.tensor or ''}".rstrip(), kind, finding.sentence


def _case(suite: xml.Element, name: str, kind: str, message: str, text: str = "") -> None:
    case = xml.SubElement(suite, "testcase", classname=suite.get("name", ""), name=safe_text(name))
    if kind:
        xml.SubElement(case, kind, message=safe_text(message)).text = safe_text(text) if text else None


def _check_places(check: Check) -> Iterable[tuple[str, str, str]]:
    every_bad = set(check.bad)
    for place in sorted(check.errors.keys() | every_bad, key=place_order):
        bad = place in every_bad
        yield place_text(place), "failure" if bad else "", "; ".join(check.reasons_at(place)) if bad else ""
    for place in check.lost:
        yield place_text(place), "skipped", "no token of its inputs is finite"


def _pair_places(pair: Comparison) -> Iterable[tuple[str, str, str]]:
    """A cell that differs fails only where the verdict is that of a bug."""
    is_bug = pair.verdict is Verdict.H2
    for place in sorted(pair.cells, key=place_order):
        cell = pair.cells[place]
        numbers = f"relative L2 {cell.rel_l2}, floor {cell.floor}"
        kind = {State.ABSENT: "skipped", State.DIFFERS: "failure" if is_bug else ""}.get(cell.state, "")
        yield place_text(place), kind, numbers if kind == "failure" else "one side has no such value"
