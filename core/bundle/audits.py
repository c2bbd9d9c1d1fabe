"""Write what an audit found: its JSON document, and as text for a person. It judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.audit.audit_file import Audit
from core.audit.finding import Finding
from core.bundle.manifest import SCHEMA
from core.bundle.report import wrapped
from core.system.safe_text import safe_text

LISTED = 8  # unread tensors that the text names; the document has all
DECIDING = (  # keys that the text shows: those that differ between models and decide numbers
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "rope.freq_base", "rope.dimension_count",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.sliding_window", "expert_count",
    "expert_used_count")


def audit_document(audit: Audit) -> dict[str, Any]:
    """The document of `audit --json`."""
    return {"schema": SCHEMA, "file": audit.name, "original": audit.original, "facts": audit.facts,
            "tensors": audit.n_tensor, "findings": list(audit.findings)}


def audit_text(audit: Audit) -> str:
    """What came of it, then the proofs, the hints and the facts."""
    return wrapped([f"{audit_word(audit)}: {safe_text(audit.name)}: {counted(audit)}",
                    *_listed("Proofs", audit.proofs), *_listed("Hints, for a person to weigh", audit.hints),
                    "Facts:", *(f"- {safe_text(line)}" for line in fact_lines(audit))])


def audit_word(audit: Audit) -> str:
    """The end of an audit in capitals, as a verdict's."""
    return "PROOF" if audit.proofs else "HINTS" if audit.hints else "NOTHING FOUND"


def counted(audit: Audit) -> str:
    """A sentence: how many proofs and hints there are, in how many tensors."""
    proofs, hints = (f"{len(each)} {what}{'s' * (len(each) != 1)}"
                     for each, what in ((audit.proofs, "proof"), (audit.hints, "hint")))
    return f"{proofs} and {hints} in {audit.n_tensor} tensors."


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    return [f"{title}:", *(f"- {safe_text(f.sentence)} ({f.kind}: {f.rule})" for f in findings)]


def fact_lines(audit: Audit) -> Iterator[str]:
    """The facts for a person, a line each; not yet safe to show."""
    facts = audit.facts
    types = ", ".join(f"{each['tensors']} x {quant}" for quant, each in facts["types"].items())
    name = f" ({facts['name']})" if facts["name"] else ""
    yield (f"{audit.name}  {facts['architecture'] or 'no architecture'}{name}  {facts['bytes'] / 2**20:.0f} MiB, "
           f"{audit.n_tensor} tensors: {types or 'none'}")
    keys = {key.partition(".")[2]: value for key, value in facts["keys"].items()}
    yield "keys: " + (", ".join(f"{k} {_short(keys[k])}" for k in DECIDING if k in keys) or "none")
    if facts["known"] is not None:
        yield f"shapes of {facts['known']['name']} (config.json of {facts['known']['source']})"
    yield _tokenizer_line(facts["tokenizer"])
    template = facts["template"]
    yield f"chat template: {template['characters']} characters" if template else "chat template: none"
    if facts["zero_token_rows"]:
        yield f"{facts['zero_token_rows']} rows of tokens are zeros: tokens that no text of its training had"
    if facts["not_run"]:
        yield f"not run by this build: {facts['not_run']}"
    if facts["unread"]:
        more = f", and {len(facts['unread']) - LISTED} more" if len(facts["unread"]) > LISTED else ""
        yield f"read by no stage: {', '.join(facts['unread'][:LISTED])}{more}"
    yield from _original_lines(audit)
    yield from (f"note: {note}" for note in (*facts["notes"], *facts["tokenizer"]["notes"]))


def _original_lines(audit: Audit) -> Iterator[str]:
    """What was held to the original, and what was not."""
    if audit.original is None:
        return
    facts = audit.facts["original"]
    counts = ", ".join(f"{n} {state}" for state, n in facts["tensors"].items())
    yield f"beside its original {audit.original}: {counts} tensors; tokenizer {facts.get('tokenizer', 'compared')}"
    yield from (f"original, {name.replace('_', ' ')}: {', '.join(said) if isinstance(said, list) else said}"
                for name, said in facts.items() if name not in ("tensors", "tokenizer"))


def _tokenizer_line(tokenizer: Mapping[str, Any]) -> str:
    if tokenizer["model"] is None:
        return "tokenizer: none"
    pre = f", pre {tokenizer['pre']}" if tokenizer["pre"] else ""
    rows = f", {tokenizer['rows']} rows of the embedding" if tokenizer["rows"] else ""
    return f"tokenizer: {tokenizer['model']}{pre}, {tokenizer['tokens'] or 0} tokens{rows}"


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
