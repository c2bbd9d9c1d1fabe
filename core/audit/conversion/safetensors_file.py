"""Read a safetensors file into weights, mapped and not copied, with its header held to the bytes. Any name is kept.

Source: the safetensors format: u64 little-endian header size, JSON header, data. Types that no weight of this build has
(the FP8 ones) are listed and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TypeGuard

from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.errors import FileError
from core.system.json_text import from_json
from core.system.mapped_file import map_file, quote_name

MAX_HEADER_BYTES = 100_000_000  # as the format says
MAX_DIMS = 8
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")
REPAIR = "Copy or download it again."


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Tensors of one or more files. unread: name -> the type that this build does not read."""

    weights: Mapping[str, Weight] = field(repr=False)
    unread: Mapping[str, str] = field(default_factory=dict)


def read_safetensors(path: Path) -> TensorFile:
    """Open one file; FileError where its header and its bytes do not fit each other."""
    data = map_file(path)
    size = int.from_bytes(bytes(data[:8]), "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise FileError(f"{path.name} is no safetensors file, or is cut short: its header is said to have {size} bytes "
                        f"and the file has {len(data)}. {REPAIR}")
    header = from_json(bytes(data[8:8 + size]), f"{path.name}'s header", REPAIR)
    if not isinstance(header, dict):
        raise FileError(f"{path.name}'s header is no JSON object. {REPAIR}")
    weights: dict[str, Weight] = {}
    unread: dict[str, str] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(path, name, entry)
        if dtype not in TYPES or not prod(shape):
            unread[name] = dtype if prod(shape) else "empty"
            continue
        weights[name] = _weight(path, name, dtype, shape, (begin, end), data[8 + size:])
    return TensorFile(weights, unread)


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """A header's line: type, shape, first byte and end in the data."""
    found = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (found.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape, MAX_DIMS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        raise FileError(f"{path.name}: the header's line of {quote_name(name)} is damaged. {REPAIR}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: object, most: int) -> TypeGuard[list[int]]:
    """Whether a value of the header is a list of at most so many whole numbers."""
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _weight(path: Path, name: str, dtype: str, shape: tuple[int, ...], at: tuple[int, int], data: Bytes) -> Weight:
    begin, end = at
    needed = tensor_bytes(QUANTS[dtype], shape)
    if end - begin != needed or end > len(data):
        raise FileError(f"{path.name}: {quote_name(name)} has {list(shape)} values of {dtype}, {needed} bytes; its "
                        f"place is {begin}..{end} of {len(data)}. {REPAIR}")
    return Weight(name, dtype, shape, data[begin:end])
