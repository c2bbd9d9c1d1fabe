"""Write records as JSON that any reader accepts: None is null, non-finite numbers are strings. It knows no record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from core.system.errors import FileError
from core.system.limits import JSON_DEPTH


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return the value as one JSON document in ASCII; a control character never stands in it unescaped."""
    return json.dumps(to_plain(value), indent=indent, allow_nan=False, ensure_ascii=True)


def from_json(text: str | bytes, name: str, repair: str) -> Any:  # noqa: ANN401 (a document is any value)
    """Parse a JSON document; FileError names it and says the repair. NaN, Infinity and 1e999 are no JSON."""
    def refuse(literal: str) -> object:
        raise ValueError(f"{literal} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse, parse_float=_finite)
        if _is_deeper(value, JSON_DEPTH):
            raise ValueError(f"more than {JSON_DEPTH} arrays and objects inside one another")
        return value
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name} is not a JSON document: {error}. {repair}") from error


def _finite(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"{literal[:20]} is beyond every float")
    return value


def _is_deeper(value: object, depth: int) -> bool:
    """Say whether arrays and objects are nested deeper; level by level, since a deep one would end the recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for outer in level if isinstance(outer, (list, dict))
                 for item in (outer.values() if isinstance(outer, dict) else outer) if isinstance(item, (list, dict))]
        if not level:
            return False
    return True


def to_plain(value: object) -> Any:  # noqa: ANN401
    """Turn records, mappings, sequences and numpy scalars into what json writes; nan and inf into strings."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(v) for key, v in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Iterable):
        return [to_plain(v) for v in value]
    item = getattr(value, "item", None)
    assert callable(item), f"{type(value).__name__} has no JSON form"
    return to_plain(item())


def number(value: object) -> float | None:
    """Read a number that plain wrote: null is None, the strings nan, inf and -inf are floats; ValueError otherwise."""
    if value is None:
        return None
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a number has more digits than a float holds") from error
