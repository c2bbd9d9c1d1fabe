"""What an audit says of one place of a file: a proof or a hint, measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Strength(StrEnum):
    """How sure a finding is: a proof needs no judgement, a hint is a person's to weigh."""

    PROOF = "proof"
    HINT = "hint"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: its kind, where it is (None where that does not apply), the measured figure, the rule it broke."""

    kind: str
    strength: Strength
    sentence: str
    rule: str
    measured: float | None = None
    tensor: str | None = None
    layer: int | None = None
    row: int | None = None
    block: int | None = None
