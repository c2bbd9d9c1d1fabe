"""Say whether two traces were taken alike: each fact that differs or is unknown, and its repair. No values."""

from __future__ import annotations

from core.audit.file_pair import is_same_key
from core.formats.model_file import ModelFile
from core.model.stages import SCOPES, scope_positions
from core.trace.record import Trace

ONE_MODEL = "compare two files of one model; an imported trace says its own with `import --model FILE`"
# fact -> what to do where it differs or is unknown
REPAIRS = {
    "tokens": "give both the same --tokens 1,2,3; an imported table says its own with `import --tokens`",
    "scope": "take both at one scope; an imported table says its own with `import --scope`",
    "definition": "an imported table says how its std was taken with `import --definition sample|population`",
    "n_layer": ONE_MODEL, "d_model": ONE_MODEL, "n_vocab": ONE_MODEL, "vocabulary": "compare two files of one model",
    "widths": "compare two files of one model",
}


def differing_facts(a: Trace, b: Trace, scope: str) -> list[str]:
    """List every fact that blocks a comparison, a sentence each with its repair; [] where the two were taken alike."""
    pairs: dict[str, tuple[object, object]] = {
        "tokens": (_ids(a), _ids(b)), "scope": (_scopes(a), _scopes(b)),
        "definition": (a.facts.definition, b.facts.definition),
        "n_layer": (a.facts.n_layer, b.facts.n_layer), "d_model": (a.facts.d_model, b.facts.d_model),
        "n_vocab": (a.facts.n_vocab, b.facts.n_vocab), "widths": (a.origin.get("widths"), b.origin.get("widths")),
    }
    found = []
    for fact, (x, y) in pairs.items():
        if fact == "scope":
            blocked = not (_has(a, scope) and _has(b, scope))
            empty = [len(t.tokens) for t in (a, b) if t.tokens and not scope_positions(scope, len(t.tokens))]
            if empty:
                found.append(f"scope: {scope} covers none of {empty[0]} tokens; take another --scope or longer prompt")
        elif fact == "widths":
            blocked = None not in (x, y) and x != y
        else:
            blocked = x is None or y is None or x != y
        if blocked:
            found.append(f"{fact}: A has {_text(x)}, B has {_text(y)}; {REPAIRS[fact]}")
    return found


def differing_vocabularies(a: ModelFile, b: ModelFile) -> list[str]:
    """Name the first token that the two vocabularies spell differently; [] where either has none or both are equal."""
    if a is b or is_same_key(a, b, "tokenizer.ggml.tokens"):
        return []
    x, y = (f.key("tokenizer.ggml.tokens") for f in (a, b))
    if not isinstance(x, list) or not isinstance(y, list) or not x or not y or x == y:
        return []
    at = next((i for i, (s, t) in enumerate(zip(x, y, strict=False)) if s != t), min(len(x), len(y)))
    return [f"vocabulary: A and B name other tokens from id {at} on; {REPAIRS['vocabulary']}"]


def _has(trace: Trace, scope: str) -> bool:
    return not trace.facts.scopes or scope in trace.facts.scopes


def _ids(trace: Trace) -> tuple[int, ...] | None:
    return tuple(t.id for t in trace.tokens) or None


def _scopes(trace: Trace) -> tuple[str, ...]:
    return trace.facts.scopes or SCOPES


def _text(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        texts = [str(v) for v in value]
        return " ".join(texts if len(texts) <= 12 else [*texts[:12], f"... ({len(texts)})"])
    return str(value)
