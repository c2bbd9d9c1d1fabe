"""Facts of a file that a person wants beside an audit's findings: what it is, what decides its numbers, what is unread.

A fact is no finding: nothing here is right or wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from core.audit.key_rules import arch_name, n_token
from core.audit.known_models import known_model
from core.audit.proofs import is_by_token
from core.audit.rule import Seen
from core.formats.model_file import LazyArray, ModelFile
from core.model.arch import unread_tensors
from core.system.errors import FileError
from core.text.tokenizer import open_tokenizer
from core.text.vocabulary_notes import vocabulary_notes

LISTED = 8  # values of an array of keys that are shown; the rest is counted


def facts_of(seen: Seen, not_run: str | None) -> dict[str, Any]:
    """Collect them. not_run: why this build does not run the file, None where it does."""
    file = seen.file
    return {
        "architecture": arch_name(file) or None, "name": _word(file, "general.name"), "format": file.format,
        "bytes": file.size_bytes, "not_run": not_run, "unread": _unread(file), "keys": _deciding_keys(file),
        "known": _known(file), "types": _types(file), "tokenizer": _tokenizer(file), "template": _template(file),
        "zero_token_rows": sum(int(s.zero_R.sum()) for n, s in seen.blocks.items()
                               if is_by_token(n) and s.zero_R is not None),
        "notes": [*file.notes, *(seen.arch.notes if seen.arch is not None else ())],
    }


def _unread(file: ModelFile) -> list[str] | None:
    """The tensors that no stage of its family reads; None where the family is not known or does not fit."""
    try:
        return unread_tensors(file)
    except FileError:
        return None


def _deciding_keys(file: ModelFile) -> dict[str, Any]:
    """The keys under the architecture's name, arrays cut short."""
    return {key: _short(file, key) for key in file.keys if key.startswith(f"{arch_name(file)}.")}


def _short(file: ModelFile, key: str) -> Any:  # noqa: ANN401 (metadata has any type)
    value = file.keys[key]
    if not isinstance(value, LazyArray):
        return value
    return file.key(key) if value.count <= LISTED else f"{value.count} x {value.type}"


def _word(file: ModelFile, key: str) -> str | None:
    """A key that is a text; None where it is none."""
    value = file.keys.get(key)
    return value if isinstance(value, str) else None


def _known(file: ModelFile) -> dict[str, Any] | None:
    row = known_model(file)
    if row is None:
        return None
    keys = {f"{row.arch}.{key}": values for key, values in row.keys().items()}
    return {"name": row.name, "source": row.source,
            "keys": {**keys, f"{row.arch}.context_length": row.context}}


def _types(file: ModelFile) -> dict[str, dict[str, int]]:
    """Tensors and bytes of each quant type, the largest first."""
    counts, sizes = Counter[str](), Counter[str]()
    for weight in file.weights.values():
        counts[weight.quant] += 1
        sizes[weight.quant] += weight.data.size
    return {quant: {"tensors": counts[quant], "bytes": size} for quant, size in sizes.most_common()}


def _tokenizer(file: ModelFile) -> dict[str, Any]:
    model, pre = (_word(file, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    embedding = file.weights.get("token_embd.weight")
    n_row = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    opened = open_tokenizer(file)
    refusal = (opened.refusal,) if opened.refusal else ()
    return {"model": model, "pre": pre, "tokens": n_token(file), "rows": n_row,
            "notes": [*refusal, *opened.notes, *(vocabulary_notes(file, n_row) if n_row is not None else ())]}


def _template(file: ModelFile) -> dict[str, Any] | None:
    template = file.keys.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    digest = hashlib.sha256(template.encode(errors="surrogateescape")).hexdigest()
    return {"characters": len(template), "sha256": digest}
