"""Read a GGUF file, version 2 or 3, little-endian, in one part or several, into a ModelFile.

It decodes no weights and writes nothing; gguf_walk steps through the bytes.
Source: the GGUF specification in ggml (docs/gguf.md), version 3.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from core.formats.gguf_header import HeaderReader
from core.formats.model_file import ModelFile, Value
from core.quant.types import BY_GGML_ID, Quant, tensor_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.errors import FileError
from core.system.limits import HEADER_BYTES, KEYS, TENSORS
from core.system.mapped_file import map_file, quote_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN = tuple(int.from_bytes(v.to_bytes(4, "big"), "little") for v in (1, 2, 3))
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
KEY_BYTES, TENSOR_BYTES = 13, 32  # the least that one of each takes in the header
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a model, as it stands."""

    path: Path
    keys: dict[str, Value]
    types: dict[str, str]  # GGUF's name of each key's type
    weights: dict[str, Weight]
    header: Bytes          # every byte before the tensor data
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the tensor index. shape is turned: rows first."""

    name: str
    quant: Quant
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Size of the tensor's bytes."""
        return tensor_bytes(self.quant, self.shape)


def read_gguf(path: Path) -> ModelFile:
    """Open a GGUF file, any part of a split one included; FileError names what is wrong with it."""
    part = _read_part(path)
    parts = [part] if part.keys.get("split.count", 1) in (0, 1) else _all_parts(part)
    first = parts[0]
    weights: dict[str, Weight] = {}
    digest = hashlib.sha256()
    for each in parts:
        digest.update(each.header.data)
        for name, weight in each.weights.items():
            if weights.setdefault(name, weight) is not weight:
                raise FileError(
                    f"{each.path.name} has tensor {quote_name(name)}, as an earlier part has. {_NOT_ONE_MODEL}"
                )
    told = first.keys.get("split.tensors.count", len(weights))
    if len(parts) > 1 and told != len(weights):
        raise FileError(f"{first.path.name} counts {told} tensors; its parts hold {len(weights)}. {_NOT_ONE_MODEL}")
    keys = {name: value for name, value in first.keys.items() if not name.startswith("split.")}
    size_bytes = sum(each.size_bytes for each in parts)
    return ModelFile(path, "gguf", keys, weights, size_bytes, digest.hexdigest(), types=first.types)


# --- one part --------------------------------------------------------------------------------------------------------


def _read_part(path: Path) -> Part:
    data = map_file(path)
    walk = HeaderReader(path, data)
    n_tensor, n_key = _read_counts(walk)
    keys: dict[str, Value] = {}
    types: dict[str, str] = {}
    for _ in range(n_key):
        name = walk.name("a metadata key")
        if name in keys:
            raise walk.damaged(f"the key {quote_name(name)} appears twice, so its value is ambiguous.")
        keys[name], types[name] = walk.value(name)
    entries: dict[str, Entry] = {}
    for _ in range(n_tensor):
        entry = _read_entry(walk)
        if entry.name in entries:
            raise walk.damaged(f"tensor {quote_name(entry.name)} appears in the index twice.")
        entries[entry.name] = entry
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise walk.damaged(f"general.alignment is {alignment!r}; a power of 2 was needed.")
    start = walk.at + -walk.at % alignment
    walk.allows(start, HEADER_BYTES, "its tensors begin at byte")
    end = _check_places(walk, list(entries.values()), start, alignment)
    if MAGIC in (bytes(data[end:end + 4]), bytes(data[end + -end % alignment:][:4])):
        raise FileError(
            f"{path.name} holds a second GGUF file behind the first: the parts of a split model were joined, but each "
            "has a header. Give the parts as they are, under their names (-00001-of-0000N.gguf), or join them with "
            "llama-gguf-split --merge.")
    return Part(path, keys, types, {e.name: _weight(e, data, start) for e in entries.values()}, data[:start], len(data))


def _read_counts(walk: HeaderReader) -> tuple[int, int]:
    magic = bytes(walk.buffer[:4])
    if magic != MAGIC:
        raise FileError(f"{walk.file} begins with {magic!r}, not with GGUF. Convert the model to GGUF.")
    walk.at = 4
    version = walk.scalar("<I", "the version")
    if version in BIG_ENDIAN:
        raise FileError(f"{walk.file} is a big-endian GGUF; this build reads little-endian ones. Convert it first.")
    if version not in VERSIONS:
        raise FileError(f"{walk.file} is GGUF version {version}; this build reads 2 and 3. Convert the model again.")
    n_tensor, n_key = walk.scalar("<Q", "the tensor count"), walk.scalar("<Q", "the key count")
    walk.holds(n_tensor * TENSOR_BYTES + n_key * KEY_BYTES, f"a header of {n_tensor} tensors and {n_key} keys")
    walk.allows(n_tensor, TENSORS, "the number of its tensors is")
    walk.allows(n_key, KEYS, "the number of its keys is")
    return n_tensor, n_key


def _read_entry(walk: HeaderReader) -> Entry:
    name = walk.name("a tensor name")
    what = f"tensor {quote_name(name)}"
    n_dim = walk.scalar("<I", what)
    if not 1 <= n_dim <= MAX_DIMS:
        raise walk.damaged(f"{what} has {n_dim} dimensions; 1 to {MAX_DIMS} were expected.")
    dims = [int(walk.scalar("<Q", what)) for _ in range(n_dim)]
    code, offset = walk.scalar("<I", what), walk.scalar("<Q", what)
    quant = BY_GGML_ID.get(code)
    if quant is None:
        known = ", ".join(q.name for q in BY_GGML_ID.values())
        raise FileError(f"{walk.file}: {what} has type id {code}; this build reads {known}. Re-quantise the file.")
    if 0 in dims:
        raise walk.damaged(f"{what} has a dimension of 0: {dims}.")
    if dims[0] % quant.block:
        raise walk.damaged(f"{what} is {quant.name} in rows of {dims[0]} values, not a multiple of {quant.block}.")
    return Entry(name, quant, tuple(reversed(dims)), offset)


def _check_places(walk: HeaderReader, entries: list[Entry], start: int, alignment: int) -> int:
    """Hold every tensor to the file's end, the alignment and its neighbours; returns where the last one ends."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda e: e.offset):
        what = f"tensor {quote_name(entry.name)}"
        if entry.offset % alignment:
            raise walk.damaged(f"{what} is at offset {entry.offset}, not a multiple of the alignment {alignment}.")
        walk.holds(start + entry.offset + entry.size_bytes - walk.at, f"{what} ({entry.quant.name})")
        if entry.offset < end:
            raise walk.damaged(f"{what} overlaps {quote_name(before)}.")
        end, before = entry.offset + entry.size_bytes, entry.name
    return start + end


def _weight(entry: Entry, data: Bytes, start: int) -> Weight:
    begin = start + entry.offset
    return Weight(entry.name, entry.quant.name, entry.shape, data[begin : begin + entry.size_bytes])


# --- several parts ---------------------------------------------------------------------------------------------------

_NOT_ONE_MODEL = "The parts do not belong together; copy or download them again."


def _all_parts(part: Part) -> list[Part]:
    """Open every part of a split model, in order."""
    count = part.keys["split.count"]
    named = _PART_NAME.fullmatch(part.path.name)
    if type(count) is not int:
        raise FileError(f"{part.path.name}: split.count is {count!r}; a whole number was needed. {_NOT_ONE_MODEL}")
    if named is None or int(named["count"]) != count:
        raise FileError(
            f"{part.path.name} is one of {count} parts, but its name does not end in -0000N-of-{count:05}.gguf, "
            "so the others cannot be found. Give the parts their names back.",
        )
    parts = []
    for i in range(int(named["count"])):
        path = part.path.with_name(f"{named['stem']}-{i + 1:05}-of-{named['count']}.gguf")
        if not path.exists():
            raise FileError(f"{path.name} is missing: {part.path.name} is one of {count} parts, and all are needed.")
        found = part if path.name == part.path.name else _read_part(path)
        place = (found.keys.get("split.no"), found.keys.get("split.count"))
        if place != (i, count):
            raise FileError(
                f"{path.name} is part {place[0]} of {place[1]}; {i} of {count} (from 0) was needed. {_NOT_ONE_MODEL}",
            )
        parts.append(found)
    return parts
