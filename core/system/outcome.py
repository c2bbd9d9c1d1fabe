"""Records of a rule that is held against what was measured: its outcome, and the gate that carries it. No rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What came of a rule. NOT_MEASURED saw no data: no pass and no failure. SHOWN is displayed and judges nothing."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_MEASURED = "NOT_MEASURED"
    SHOWN = "SHOWN"


PASS, FAIL, NOT_MEASURED, SHOWN = Outcome.PASS, Outcome.FAIL, Outcome.NOT_MEASURED, Outcome.SHOWN


@dataclass(frozen=True, slots=True)
class Gate:
    """One rule and what came of it. measured: what was seen, in words; evidence: the file of a run that shows it."""

    id: str
    rule: str
    measured: str
    verdict: Outcome
    evidence: str = ""
