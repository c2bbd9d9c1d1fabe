"""Say in words what two files differ in, from their keys and their packed bytes, before any forward. No verdicts.

Nothing is decoded, so that equal files cost one reading; what a difference is, core/proof/weights says later.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from core.audit.blocks import row_blocks
from core.formats.model_file import LazyArray, ModelFile
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.cancel import IsCancelled, never
from core.system.errors import Cancelled

PIECE = 1 << 20
NAMED = 3                               # of each kind; the rest are counted
UNTOLD = ("general.", "apr_tui.")       # keys that change no number and no token


def file_diff(a: ModelFile, b: ModelFile, cancelled: IsCancelled = never) -> tuple[str, ...]:
    """Compare two files: a sentence for each kind of difference, or that there is none; Cancelled."""
    if os.path.samefile(a.path, b.path):
        return ("A and B are one file",)
    both = [name for name in a.weights if name in b.weights]
    shapes = [n for n in both if a.weights[n].shape != b.weights[n].shape]
    types = [n for n in both if n not in set(shapes) and a.weights[n].quant != b.weights[n].quant]
    bytes_ = {n: at for n in both if n not in set(shapes) | set(types)
              and (at := first_difference(a.weights[n].data, b.weights[n].data, cancelled)) is not None}
    keys = _keys(a, b) if a.header_sha256 != b.header_sha256 else ()
    found = [*keys, *_only("A", a.weights, b.weights), *_only("B", b.weights, a.weights),
             *(f"{n} has shape {list(a.weights[n].shape)} in A and {list(b.weights[n].shape)} in B"
               for n in shapes[:NAMED]), *_retyped(a, b, types), *_changed(a, b, bytes_)]
    n_equal = len(both) - len(shapes) - len(types) - len(bytes_)
    if not found:
        return (f"A and B hold the same: {n_equal} tensors, byte for byte, and every key that is told apart",)
    return (*found, f"{n_equal} of {len({*a.weights, *b.weights})} tensors are equal, byte for byte")


def is_same_key(a: ModelFile, b: ModelFile, key: str) -> bool:
    """Say whether a key holds the same in two files; a float to float32, absent in both is the same."""
    x, y = a.keys.get(key), b.keys.get(key)
    if isinstance(x, LazyArray) and isinstance(y, LazyArray):
        return x.is_same(y)
    if isinstance(x, float) and isinstance(y, float):
        return np.float32(x) == np.float32(y)  # type: ignore[no-any-return]
    return x == y


def first_difference(a: Bytes, b: Bytes, cancelled: IsCancelled) -> int | None:
    """The first byte that is not the same, in pieces; None where all are. Cancelled."""
    if len(a) != len(b):
        return min(len(a), len(b))
    for start in range(0, len(a), PIECE):
        if cancelled():
            raise Cancelled("the comparison was cancelled")
        x, y = a[start:start + PIECE], b[start:start + PIECE]
        n = len(x) // 8 * 8
        if (x[:n].view("<u8") != y[:n].view("<u8")).any() or (x[n:] != y[n:]).any():
            return start + int(np.argmax(x != y))
    return None


def _keys(a: ModelFile, b: ModelFile) -> Sequence[str]:
    """The keys that differ, with both values where they are short."""
    names = [k for k in dict.fromkeys([*a.keys, *b.keys]) if not k.startswith(UNTOLD)]
    differ = [k for k in names if not is_same_key(a, b, k)]
    each = [f"{k} is {_text(a, k)} in A and {_text(b, k)} in B" for k in differ[:NAMED]]
    return [*each, *([f"{len(differ) - NAMED} more keys differ"] if len(differ) > NAMED else [])]


def _text(file: ModelFile, key: str) -> str:
    value = file.keys.get(key)
    if value is None:
        return "absent"
    if isinstance(value, LazyArray):
        return f"{value.count} values"
    return f"{value:.7g}" if isinstance(value, float) else str(value) if len(str(value)) < 40 else "a text"


def _only(side: str, there: Mapping[str, Weight], other: Mapping[str, Weight]) -> list[str]:
    only = [n for n in there if n not in other]
    return [f"only in {side}: {_named(only)}"] if only else []


def _retyped(a: ModelFile, b: ModelFile, names: Sequence[str]) -> list[str]:
    pairs = Counter((a.weights[n].quant, b.weights[n].quant) for n in names)
    return [f"{n} tensor{'s are' if n > 1 else ' is'} {x} in A and {y} in B" for (x, y), n in pairs.most_common()]


def _changed(a: ModelFile, b: ModelFile, found: Mapping[str, int]) -> list[str]:
    if not found:
        return []
    each = [f"{name} (from row {_row(a.weights[name], at)} on)" if len(a.weights[name].shape) > 1 else name
            for name, at in list(found.items())[:NAMED]]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"other bytes in {', '.join(each)}{more}"]


def _row(weight: Weight, at: int) -> int:
    quant = QUANTS[weight.quant]
    return 0 if quant.whole else at // (row_blocks(weight) * quant.block_bytes)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
