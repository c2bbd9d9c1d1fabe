"""Audit a model file by itself: open whatever its format opens, hold it to the rules, and say what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.audit.blocks import scan_blocks
from core.audit.facts import facts_of
from core.audit.finding import Finding, Strength
from core.audit.key_rules import KEY_RULES
from core.audit.proofs import BYTE_RULES
from core.audit.rule import Rule, Seen, hold
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.model.arch import Arch, read_arch
from core.notebook.result import Notebook
from core.system.cancel import IsCancelled, never
from core.system.errors import FileError


@dataclass(frozen=True, slots=True, repr=False)
class Audit(Notebook):
    """What an audit found. n_tensor: tensors that were looked at. original: what the file was held to, if anything.

    Proofs stand before hints.
    """

    name: str
    facts: Mapping[str, Any]
    n_tensor: int
    findings: Sequence[Finding]
    original: str | None = None

    @property
    def proofs(self) -> list[Finding]:
        """The findings that need no judgement."""
        return [f for f in self.findings if f.strength is Strength.PROOF]

    @property
    def hints(self) -> list[Finding]:
        """The findings that a person weighs."""
        return [f for f in self.findings if f.strength is Strength.HINT]

    def sentences(self) -> list[str]:
        """How many proofs and hints, then each."""
        beside = f" beside {self.original}" if self.original else ""
        return [f"{self.name}{beside}: {len(self.proofs)} proofs, {len(self.hints)} hints in {self.n_tensor} tensors",
                *(f.sentence for f in self.findings)]

    def rows(self) -> list[dict[str, object]]:
        """The findings."""
        return [asdict(f) for f in self.findings]

    @property
    def exit_code(self) -> int:
        """1 where something is proved, else 0."""
        return 1 if self.proofs else 0


def audit_file(path: Path, cancelled: IsCancelled = never) -> Audit:
    """Audit one file: facts, proofs and hints. FileError where it is no GGUF or .apr; Cancelled."""
    from core.audit.profiles import profile_file

    file = open_model(path)
    arch, not_run = _arch_of(file)
    seen = Seen(file, arch, scan_blocks(file, cancelled), profile_file(file, cancelled))
    return Audit(path.name, facts_of(seen, not_run), len(file.weights), judge(seen))


def judge(seen: Seen) -> list[Finding]:
    """Hold a decoded file to every rule, proofs first. Hints from levels are asked of trained weights only."""
    from core.audit.level_rules import COLUMN_RULES, LEVEL_RULES, is_trained
    from core.audit.order_rules import ORDER_RULES

    with np.errstate(all="ignore"):  # levels of a file at fault may be zero or beyond float32
        hints = (*LEVEL_RULES, *ORDER_RULES) if is_trained(seen.profiles) else ()
        findings = hold((*BYTE_RULES, *COLUMN_RULES, *KEY_RULES, *hints), seen)
    return sorted(findings, key=lambda f: f.strength is Strength.HINT)


def prove(file: ModelFile, arch: Arch | None, cancelled: IsCancelled = never) -> list[Finding]:
    """The proofs alone, from packed bytes and keys: nothing is decoded, so that a run may ask too; Cancelled."""
    return _proved((*BYTE_RULES, *KEY_RULES), file, arch, cancelled)


def prove_bytes(file: ModelFile, cancelled: IsCancelled = never) -> list[Finding]:
    """The proofs of tensors alone; each has its tensor. Cancelled."""
    return _proved(BYTE_RULES, file, None, cancelled)


def proof_note(proofs: Sequence[Finding], name: str) -> str:
    """The proofs in one line, for whoever runs the file."""
    more = f" and {len(proofs) - 1} more" if len(proofs) > 1 else ""
    return f"audit proves: {proofs[0].sentence}{more} (apr-tui audit {name})"


def _proved(rules: Sequence[Rule], file: ModelFile, arch: Arch | None, cancelled: IsCancelled) -> list[Finding]:
    return hold([r for r in rules if r.strength is Strength.PROOF], Seen(file, arch, scan_blocks(file, cancelled)))


def _arch_of(file: ModelFile) -> tuple[Arch | None, str | None]:
    """The architecture, or why this build does not run it."""
    try:
        return read_arch(file), None
    except FileError as error:
        return None, str(error)
