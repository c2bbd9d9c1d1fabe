"""Hold a model file to what it was made from: keys, tensors, tokenizer, chat template. No forward, no verdict.

Proofs only: what a converter must write is declared (conversion/), so that nothing here is a judgement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.audit.audit_file import Audit, audit_file
from core.audit.conversion.key_rules import ARCHITECTURES
from core.audit.conversion.keys import expected_archs, key_findings
from core.audit.conversion.original import Original, open_original
from core.audit.conversion.plan import Plan, make_plan
from core.audit.conversion.sizes import read_sizes
from core.audit.conversion.tensors import VAGUE, Compared, State, compare_tensors, presence_findings
from core.audit.conversion.vocabulary import tokenizer_findings
from core.audit.finding import Finding, Strength
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.system.cancel import IsCancelled, never
from core.system.errors import Cancelled
from core.system.mapped_file import quote_name

OTHER_MODEL = 0.5    # of the tensors differ, and none by a known mistake: another model, or a fine-tune
NAMED = 8            # names in a fact; the rest are counted


@dataclass(frozen=True, slots=True)
class OriginalResult:
    """What a comparison with an original found: proofs of keys, tensors, tokenizer; and what was compared."""

    findings: tuple[Finding, ...]
    facts: dict[str, object] = field(default_factory=dict)
    compared: frozenset[str] = frozenset()


def audit_beside(path: Path, original: Path, cancelled: IsCancelled = never) -> Audit:
    """Audit a file by itself and beside its original: what one says of a tensor, the other does not say again.

    Hints on what was compared are left out: the original decides it. FileError, Cancelled.
    """
    beside = compare_with_original(path, original, cancel=cancelled)
    alone = audit_file(path, cancelled)
    told = {f.tensor for f in beside.findings}
    own = [f for f in alone.proofs if f.tensor is None or f.tensor not in told]
    hints = [f for f in alone.hints if f.tensor is not None and f.tensor not in beside.compared]
    facts = {**alone.facts, "original": beside.facts}
    return replace(alone, facts=facts, findings=[*beside.findings, *own, *hints], original=original.name)


def compare_with_original(path: Path, original: Path, *, cancel: IsCancelled) -> OriginalResult:
    """Compare a model file with its original, a folder, a .safetensors, a GGUF or an .apr.

    FileError where one of them cannot be read or is refused; Cancelled.
    """
    file, source = open_model(path), open_original(original)
    arch = str(file.keys.get("general.architecture", ""))
    wanted = expected_archs(source.config)
    named = arch if not wanted or arch in wanted else wanted[0]
    plan = make_plan(source, file, named, read_sizes(source.config, file, arch))
    facts: dict[str, object] = {}
    keys = key_findings(file, source, arch)
    tensors = list(compare_tensors(plan, file, cancel))
    if cancel():
        raise Cancelled("The audit was cancelled.")
    presence = presence_findings(plan, file)
    words = list(tokenizer_findings(file, source, facts))
    facts.update(_facts(plan, source, file, tensors))
    return OriginalResult((*keys, *presence, *_told(tensors, source), *words), facts,
                          frozenset(t.name for t in tensors))


def _told(tensors: list[Compared], source: Original) -> list[Finding]:
    """The tensors' findings; one for all where the weights are another model's."""
    found = [t.finding for t in tensors if t.finding is not None]
    vague = [f for f in found if f.kind in VAGUE]
    if len(tensors) > 1 and len(found) > OTHER_MODEL * len(tensors) and len(vague) == len(found):
        text = (f"{len(found)} of {len(tensors)} tensors differ, none by a known mistake: other weights than "
                f"{quote_name(source.path.name)}'s (a fine-tune, another model). {found[0].sentence}")
        return [Finding("other model", Strength.PROOF, text, found[0].rule, float(len(found)), found[0].tensor)]
    return found


def _facts(plan: Plan, source: Original, file: ModelFile, tensors: list[Compared]) -> dict[str, object]:
    states = Counter(t.state for t in tensors)
    facts: dict[str, object] = {"tensors": {state.value: states[state] for state in State}}
    known = {t.name for t in tensors}
    lists = {
        "without_a_name": plan.unknown, "left_out": plan.left_out,
        "of_other_types": tuple(source.unread),
        "not_compared": tuple(n for n in file.weights if n not in known),
    }
    for name, found in lists.items():
        if found:
            more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
            facts[name] = [*found[:NAMED], *more]
    if source.config and not expected_archs(source.config):
        facts["model_type"] = (f"{quote_name(str(source.config.get('model_type')))} is not in the table of "
                                        f"{len(ARCHITECTURES)} types; the file's architecture was taken")
    if source.adapter:
        facts["adapter"] = f"merged into {len(plan.deltas)} tensors"
    return facts
