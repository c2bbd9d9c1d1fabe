"""Make a record hostile: every text in it that came from a file, a name or the environment steers a terminal or a page.

The program's own words stay: members of enumerations, and the fields below, which are looked up.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

STEERING = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\x15\n\r\u2028"
HOSTILE = f"{STEERING}</td><script>alert(1)</script><img src=x onerror=y>`|[l](j:x)**\\"
# fields that hold a word of the program's own
WORDS = {"stage", "scope", "scopes", "type", "from_type", "to_type", "definition", "compute", "dtype", "layer_kinds",
         "method", "strength", "schema", "status", "verdict", "mode", "host", "config"}


def spoilt(value, name=""):
    """The same with every text hostile. A mapping's keys stay, but those that are names in a file (they have a dot)."""
    if isinstance(value, Enum) or name in WORDS:
        return value
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, Path):
        return value
    if dataclasses.is_dataclass(value):
        told = {f.name: spoilt(getattr(value, f.name), f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **told)
    if isinstance(value, Mapping):
        return {spoilt(k) if isinstance(k, str) and "." in k else k: spoilt(v, k if isinstance(k, str) else name)
                for k, v in value.items()}
    if isinstance(value, tuple | list):
        is_place = len(value) == 2 and isinstance(value[1], str) and (value[0] is None or type(value[0]) is int)
        return value if is_place else type(value)(spoilt(v, name) for v in value)
    return value


def is_shown(text):
    """Whether a terminal takes it as text and nothing else."""
    return not [c for c in text if (c != "\n" and unicodedata.category(c)[0] == "C") or c in "\u2028\u2029"]
