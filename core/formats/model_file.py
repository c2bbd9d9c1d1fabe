"""Records of an opened model file, whatever its format. Not a reader: gguf_file and apr_file are.

Names and keys are GGUF's for both formats (the .apr reader translates), so nothing above this file knows the format.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.errors import FileError


@dataclass(frozen=True, slots=True)
class LazyArray:
    """An array of the metadata that is parsed only when asked for (a vocabulary is 152,000 strings)."""

    type: str  # GGUF's name of the element type: STRING, INT32, FLOAT32 ...
    count: int
    load: Callable[[], list[Any]] = field(repr=False)
    raw: Bytes | None = field(default=None, repr=False, compare=False)  # as it stands in the file

    def is_same(self, other: LazyArray) -> bool:
        """Say whether both hold the same items; equal bytes need no parsing."""
        if self.count != other.count:
            return False
        x, y = self.raw, other.raw
        alike = self.type == other.type and x is not None and y is not None and x.data == y.data
        return alike or self.load() == other.load()


Value = str | int | float | bool | LazyArray
USUAL = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}  # GGUF's type of a value that states none


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An opened model: keys parsed, weights mapped and not read.

    types: GGUF's type name of a scalar key (UINT32, FLOAT32 ...), where the file says it.
    verify: checks a checksum over every byte, FileError if it fails; None where the format has none.
    """

    path: Path
    format: str  # gguf or apr
    keys: Mapping[str, Value] = field(repr=False)
    weights: Mapping[str, Weight] = field(repr=False)
    size_bytes: int
    header_sha256: str  # of every byte before the tensor data; which file it is, identity.py says
    notes: tuple[str, ...] = ()  # what the reader had to assume, for a person
    verify: Callable[[], None] | None = field(default=None, repr=False)
    types: Mapping[str, str] = field(default_factory=dict, repr=False)

    def key(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 (metadata has any type)
        """Return a metadata value; arrays come parsed, as a list."""
        value = self.keys.get(name, default)
        return value.load() if isinstance(value, LazyArray) else value

    def types_text(self) -> str:
        """Count the weights of each type, and say which have which in eight digits of a digest."""
        counts = Counter(w.quant for w in self.weights.values())
        each = ",".join(f"{name}:{self.weights[name].quant}" for name in sorted(self.weights))
        digest = hashlib.sha256(each.encode(errors="surrogateescape")).hexdigest()[:8]
        return ", ".join(f"{n} x {quant}" for quant, n in sorted(counts.items())) + f" ({digest})"

    def weight(self, name: str) -> Weight:
        """Return a tensor; FileError names it where it is missing."""
        found = self.weights.get(name)
        if found is None:
            raise FileError(f"{self.path.name} has no tensor {name}; its architecture needs it. It is incomplete.")
        return found
