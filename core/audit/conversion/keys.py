"""Hold every key of a file to its original: to config.json through the table, or to another file's key of the name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from core.audit.conversion.key_rules import ARCHITECTURES, KEY_RULES, REQUIRED, UNSAID, AnyOf, KeyRule
from core.audit.conversion.original import Original
from core.audit.finding import Finding, Strength
from core.formats.architectures import ARCHS
from core.formats.model_file import LazyArray, ModelFile
from core.system.mapped_file import quote_name

RULE = "each key that the original's config.json decides has its value"
RELATIVE = 1e-6   # between a decimal of JSON and the float32 of a GGUF key
UNCOMPARED = ("general.", "split.", "quantize.", "imatrix.", "tokenizer.ggml.precompiled_charsmap")
SHOWN = 60        # characters of a value in a sentence
NO_ROPE = "none"  # pairing of an architecture without RoPE


def expected_archs(config: Mapping[str, object]) -> tuple[str, ...]:
    """The architecture names that fit a configuration; empty where its type is not in the table."""
    return ARCHITECTURES.get(str(config.get("model_type", "")).removesuffix("_text"), ())


def key_findings(file: ModelFile, original: Original, arch: str) -> list[Finding]:
    """Every key that contradicts the original. arch: the name under which the file keeps its keys."""
    if original.model is not None:
        return _against_file(file, original.model)
    found = []
    wanted = expected_archs(original.config)
    if wanted and arch not in wanted:
        found.append(_finding("architecture", "general.architecture", arch, " or ".join(wanted),
                              f"model_type {original.config.get('model_type')}"))
    if not original.config:
        return found
    named = arch if not wanted or arch in wanted else wanted[0]
    for rule in KEY_RULES:
        finding = _hold(rule, file, original, arch, named)
        found += [finding] if finding is not None else []
    return found + _window_pattern(file, original, arch)


def _hold(rule: KeyRule, file: ModelFile, original: Original, arch: str, named: str) -> Finding | None:
    """One rule; named: the architecture by which rules are chosen, arch: the one before the file's keys."""
    family = ARCHS.get(named)
    is_rope = rule.key.startswith("rope.")
    if (rule.archs and named not in rule.archs) or named in rule.but_archs or (
            is_rope and family is not None and family.pairing == NO_ROPE):
        return None
    try:
        wanted = rule.says(original.config)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None  # a configuration with other types than a publisher's says nothing
    if wanted is None or wanted == AnyOf((None, None)):
        return None
    key = f"{arch}.{rule.key}"
    found = file.key(key)
    if found is None:
        is_needed = rule.default == REQUIRED or (rule.default != UNSAID and not fits(rule.default, wanted))
        if not is_needed or _may_lack(rule, family):
            return None
        return _finding("missing key", key, None, wanted, "config.json")
    return None if fits(found, wanted) else _finding("key", key, found, wanted, "config.json")


def _may_lack(rule: KeyRule, family: object) -> bool:
    """A window of a family that has none is not written."""
    return rule.key == "attention.sliding_window" and not getattr(family, "window", 0)


def fits(found: object, wanted: object) -> bool:
    """Whether a key's value is the one asked for; of a list of one value a layer, each that is not 0."""
    if isinstance(wanted, AnyOf):
        return any(value is not None and fits(found, value) for value in wanted.values)
    if isinstance(found, list) and not isinstance(wanted, list):
        return all(fits(value, wanted) for value in found if value not in (0, 0.0))
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(fits(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, list):  # one value a layer, where the file has one for all
        return bool(wanted) and all(fits(found, value) for value in wanted)
    if isinstance(wanted, bool) or isinstance(found, bool) or isinstance(wanted, str) or isinstance(found, str):
        return found == wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return found == wanted or abs(found - wanted) <= RELATIVE * max(abs(found), abs(wanted))
    return found == wanted


def _window_pattern(file: ModelFile, original: Original, arch: str) -> list[Finding]:
    """Which layers see a window only, by the file's key or its family's habit, beside layer_types."""
    kinds, family = original.config.get("layer_types"), ARCHS.get(arch)
    window = file.key(f"{arch}.attention.sliding_window")
    words = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or not window or any(k not in words for k in kinds) or len(kinds) > 4096:
        return []
    said = file.key(f"{arch}.attention.sliding_window_pattern", family.window if family is not None else None)
    if family is not None and family.window_layers not in (None, len(kinds)):
        return []
    if isinstance(said, list):
        found = [bool(v) for v in said]
    elif isinstance(said, int) and said > 0:
        found = [i % said < said - 1 for i in range(len(kinds))]
    else:
        return []
    wanted = [kind == words[0] for kind in kinds]
    if found == wanted:
        return []
    return [_finding("key", f"{arch}.attention.sliding_window_pattern", found, wanted, "config.json's layer_types")]


def _against_file(file: ModelFile, other: ModelFile) -> list[Finding]:
    """Every key of another model file; of an .apr only those that both have, for it keeps fewer."""
    found = []
    names = dict.fromkeys([*other.keys, *file.keys])
    for name in names:
        if name.startswith(UNCOMPARED) and name != "general.architecture":
            continue
        one, both = "apr" in (file.format, other.format), name in file.keys and name in other.keys
        if both and not _is_same(file, other, name):
            found.append(_finding("key", name, _said(file, name), _said(other, name), other.path.name))
        elif not both and not one:
            kind = "extra key" if name in file.keys else "missing key"
            found.append(_finding(kind, name, _said(file, name), _said(other, name), other.path.name))
    return found


def _is_same(file: ModelFile, other: ModelFile, name: str) -> bool:
    one, two = file.keys[name], other.keys[name]
    if isinstance(one, LazyArray) and isinstance(two, LazyArray) and one.count != two.count:
        return False
    return fits(file.key(name), other.key(name))


def _said(file: ModelFile, name: str) -> object:
    value = file.keys.get(name)
    return f"an array of {value.count}" if isinstance(value, LazyArray) else value


def _finding(kind: str, key: str, found: object, wanted: object, source: str) -> Finding:
    if found is None:
        text = f"{key} is absent; {source} says {_text(wanted)}"
    elif wanted is None:
        text = f"{key} is {_text(found)}; {source} has none"
    else:
        text = f"{key} is {_text(found)}; {source} says {_text(wanted)}"
    measured = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    return Finding(kind, Strength.PROOF, text, RULE, measured if measured is None or np.isfinite(measured) else None)


def _text(value: object) -> str:
    if isinstance(value, AnyOf):
        return " or ".join(_text(v) for v in dict.fromkeys(v for v in value.values if v is not None))
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, str):
        return quote_name(value) if not value.replace("-", "").replace("_", "").replace(" ", "").isalnum() else value
    text = str(value)
    return text if len(text) <= SHOWN else text[:SHOWN - 3] + "..."
