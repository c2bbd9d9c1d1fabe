"""Turn an .apr file's JSON metadata into GGUF's keys. Not the way back: apr_writer.

A key and its alias in one file is an error even where both say the same: the format's own reader then drops all
metadata and runs on defaults, so numbers from such a file have no one meaning.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from core.formats.apr_keys import KEYS, SILENT, TOKENIZER_MODELS, Key
from core.formats.architectures import APR_NAMES
from core.formats.model_file import LazyArray, Value
from core.quant.weight import Weight
from core.system.errors import FileError
from core.system.mapped_file import quote_name

Json = dict[str, Any]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_metadata(
    file: str, raw: bytes, weights: Mapping[str, Weight],
) -> tuple[dict[str, Value], dict[str, str], list[str]]:
    """Return GGUF's keys, the types that the file states, and notes on what was assumed."""
    meta = _parse(file, raw)
    notes: list[str] = []
    keys, types = _read_kept(file, meta.get("gguf"))
    arch = _arch(keys, meta, notes)
    for key in KEYS:
        name = key.gguf.format(arch=arch)
        value = _find(file, meta, key)
        if value is not None and name not in keys:
            keys[name] = _typed(file, key.apr, types.setdefault(name, key.type), value)
    _finish(keys, meta, weights, notes)
    types = {name: "ARRAY" if kind.endswith("[]") else kind for name, kind in types.items() if name in keys}
    return keys, types, notes


def _parse(file: str, raw: bytes) -> Json:
    def pairs(items: list[tuple[str, Any]]) -> Json:
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {quote_name(twice)} stands there twice")
        return found

    def constant(name: str) -> Any:  # noqa: ANN401 (it never returns)
        raise ValueError(f"{name} is not a JSON number")

    try:
        text = raw.decode()
        meta = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
        if _SURROGATE.search(text):  # a lone surrogate cannot be encoded
            json.dumps(meta, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file}: its metadata is not good JSON: {error}. Write the file again.") from None
    if not isinstance(meta, dict):
        raise FileError(f"{file}: its metadata is a {type(meta).__name__}; an object was needed. Write the file again.")
    return meta


def _read_kept(file: str, kept: Any) -> tuple[dict[str, Value], dict[str, str]]:  # noqa: ANN401 (JSON)
    """Read the object `gguf`: GGUF keys that .apr has no key for, and types other than usual."""
    keys: dict[str, Value] = {}
    types: dict[str, str] = {}
    if kept is None:
        return keys, types
    items = kept.values() if isinstance(kept, dict) else [None]
    if not all(isinstance(item, dict) and isinstance(item.get("type"), str) for item in items):
        raise FileError(f"{file}: its key gguf is not an object of {{key: {{type, value}}}}. Write the file again.")
    for name, item in kept.items():
        types[name] = item["type"]
        if "value" in item:
            keys[name] = _typed(file, name, item["type"], item["value"])
    return keys, types


def _arch(keys: dict[str, Value], meta: Json, notes: list[str]) -> str:
    """Name the architecture as GGUF does, and leave it in keys."""
    if "general.architecture" in keys:
        return str(keys["general.architecture"])
    names = ("architecture", "hf_model_type", "hf_architecture", "model_type")
    source = next((name for name in names if isinstance(meta.get(name), str) and meta[name]), None)
    if source is None:
        return ""
    plain = str(meta[source]).lower().removesuffix("forcausallm")
    arch = APR_NAMES.get(plain, plain)
    if source != "architecture" or arch != meta[source]:
        notes.append(f"architecture {arch}, from {source} {quote_name(meta[source])}")
    keys["general.architecture"] = arch
    return arch


def _find(file: str, meta: Json, key: Key) -> Any:  # noqa: ANN401 (JSON)
    spelled = [name for name in (key.apr, *key.aliases) if name in meta]
    if len(spelled) > 1:
        raise FileError(
            f"{file}: its metadata has both {spelled[0]} and {spelled[1]}, two spellings of one key; the format's "
            "readers drop all metadata for that. Write the file again with one of them.",
        )
    values = [meta[name] for name in (*spelled, *key.others) if meta.get(name) is not None]
    return values[0] if values else None


def _finish(keys: dict[str, Value], meta: Json, weights: Mapping[str, Weight], notes: list[str]) -> None:
    arch, model = keys.get("general.architecture"), keys.get("tokenizer.ggml.model")
    if isinstance(model, str):
        keys["tokenizer.ggml.model"] = TOKENIZER_MODELS.get(model.lower(), model)
    head_dim = keys.get(f"{arch}.attention.key_length")
    if head_dim is not None:
        keys.setdefault(f"{arch}.attention.value_length", head_dim)
    if "token_embd.weight" in weights:
        if "apr.rope_type" not in keys:
            notes.append(f"rope_type is absent: the usual one of {arch} is taken")
        if "output.weight" not in weights and meta.get("tied_embeddings") is not True:
            notes.append("lm_head.weight is absent: the token embedding is taken as the output head")
        elif "output.weight" in weights and meta.get("tied_embeddings") is True:
            notes.append("tied_embeddings is true, but the file has an lm_head.weight, which is used")
    known = {name for key in KEYS for name in (key.apr, *key.aliases, *key.others)} | SILENT
    unknown = [quote_name(name) for name in meta if name not in known]
    if unknown:
        notes.append(f"metadata not read: {', '.join(unknown[:8])}{' ...' if len(unknown) > 8 else ''}")


# --- values ----------------------------------------------------------------------------------------------------------


def _whole(low: int, high: int) -> Callable[[Any], Any]:
    def check(value: Any) -> int:  # noqa: ANN401 (JSON)
        if type(value) is not int or not low <= value < high:
            raise ValueError(f"a whole number from {low} to {high - 1}")
        return value

    return check


def _single(value: Any) -> float:  # noqa: ANN401 (JSON)
    """Round to float32, as GGUF stores it: 1e-6 in JSON and in GGUF must be one number."""
    (single,) = struct.unpack("<f", struct.pack("<f", _double(value)))
    return float(single)


def _double(value: Any) -> float:  # noqa: ANN401 (JSON)
    if value in ("nan", "inf", "-inf") or type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(value)
    raise ValueError("a number")


def _exactly(kind: type, words: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:  # noqa: ANN401 (JSON)
        if type(value) is not kind:
            raise ValueError(words)
        return value

    return check


CHECKS: dict[str, Callable[[Any], Any]] = {  # GGUF's type -> what a JSON value must be
    **{f"UINT{bits}": _whole(0, 1 << bits) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": _whole(-1 << bits - 1, 1 << bits - 1) for bits in (8, 16, 32, 64)},
    "FLOAT32": _single, "FLOAT64": _double, "BOOL": _exactly(bool, "true or false"), "STRING": _exactly(str, "a text"),
}


def _checked(items: list[Any], check: Callable[[Any], Any]) -> list[Any]:
    """Check every item of a list; text of a vocabulary and whole numbers need no call for each."""
    found = set(map(type, items))
    if found == {str} and items[0] == check(items[0]):
        return items
    if found == {int} and check is not _single and check is not _double:
        check(min(items))
        check(max(items))
        return items
    return [check(item) for item in items]


def _typed(file: str, name: str, type_name: str, value: Any) -> Value:  # noqa: ANN401 (JSON)
    """Check a JSON value against GGUF's type and return it; an array stays as it is, behind a LazyArray."""
    kind = type_name.removesuffix("[]")
    try:
        check = CHECKS[kind]
        if kind == type_name:
            found: Value = check(value)
            return found
        items = _checked(_exactly(list, "a list")(value), check)
    except KeyError:
        raise FileError(
            f"{file}: {quote_name(name)} has the type {quote_name(type_name)}, which GGUF does not have."
        ) from None
    except (ValueError, OverflowError) as error:
        found_text = ascii(value) if len(str(value)) < 80 else f"a {type(value).__name__}"
        raise FileError(
            f"{file}: {quote_name(name)} is {found_text}; {error} was needed. Write the file again."
        ) from None
    return LazyArray(kind, len(items), lambda: items)
