"""Read an .apr v2 file into a ModelFile. It decodes no weights; apr_metadata turns the JSON, apr_writer writes.

At open: magic, header CRC, version, flags, bounds, order of the index, file length. The footer's CRC covers every
byte of the file and is checked by ModelFile.verify.
Source: apr-format v2, header_impl, tensor_index_impl, reader_impl; the layout is in APR_HEADER and read_index.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from core.formats.apr_keys import FLAGS, REFUSED, gguf_tensor
from core.formats.apr_metadata import read_metadata
from core.formats.model_file import ModelFile
from core.quant.types import BY_APR_CODE, Quant, tensor_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.errors import FileError
from core.system.limits import HEADER_BYTES, METADATA_BYTES, TENSORS
from core.system.mapped_file import map_file, quote_name

MAGIC = b"APR\0"
OLDER = {b"APRN": "version 1 (APRN)", b"APR1": "APR1", b"APR2": "APR2"}
# magic, major, minor, flags, tensors, metadata offset and size, index offset, data offset, CRC, reserved
APR_HEADER = struct.Struct("<4sBBHIQIQQI20x")
ALIGNMENT = 64
MAX_NAME, MAX_DIMS = 256, 8
FOOTER = 4
ENTRY_BYTES = 2 + 1 + 1 + 1 + 8 + 8  # the least that one tensor takes in the index
_CHUNK = 16 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """The first 64 bytes, checked."""

    flags: int
    n_tensor: int
    metadata: slice
    index: slice  # the index and its padding
    data_offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index, in .apr's own words. offset counts from the data section."""

    name: str
    quant: Quant
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_apr(path: Path) -> ModelFile:
    """Open an .apr v2 file; FileError names what is wrong with it."""
    data = map_file(path)
    header = read_header(path.name, data)
    entries = read_index(path.name, data[header.index], header.n_tensor)
    _check_places(path.name, header, entries, len(data))
    weights: dict[str, Weight] = {}
    for entry in entries:
        name, begin = gguf_tensor(entry.name), header.data_offset + entry.offset
        if name in weights:
            raise FileError(
                f"{path.name} has {quote_name(name)} twice, once as {quote_name(entry.name)}. Write the file again."
            )
        weights[name] = Weight(name, entry.quant.name, entry.shape, data[begin : begin + entry.size_bytes])
    keys, types, notes = read_metadata(path.name, bytes(data[header.metadata]), weights)
    digest = hashlib.sha256(data[: header.data_offset].data).hexdigest()
    return ModelFile(
        path, "apr", keys, weights, len(data), digest, tuple(notes), lambda: verify_footer(path.name, data), types,
    )


def read_header(file: str, data: Bytes) -> Header:
    """Check the first 64 bytes, and that what they point to lies inside the file."""
    magic = bytes(data[:4])
    if magic in OLDER:
        raise FileError(f"{file} is an older .apr container, {OLDER[magic]}; this build reads v2. Convert it with apr.")
    if magic != MAGIC:
        raise FileError(f"{file} begins with {magic!r}, not with {MAGIC!r}: it is not an .apr file.")
    if len(data) < APR_HEADER.size + FOOTER:
        raise _cut_short(file, "its header and footer end", APR_HEADER.size + FOOTER, len(data))
    head = bytes(data[: APR_HEADER.size])
    _, major, minor, flags, n_tensor, at, size, index_at, data_at, crc = APR_HEADER.unpack(head)
    if major != 2:
        raise FileError(f"{file} is .apr version {major}.{minor}; this build reads version 2.0. Convert it with apr.")
    found = zlib.crc32(head[44:], zlib.crc32(head[:40]))
    if found != crc:
        raise FileError(
            f"{file}: its header's checksum is {crc:#010x}, but its bytes give {found:#010x}. "
            "The header is damaged; copy or download the file again.",
        )
    for flag, reason in REFUSED.items():
        if flags & FLAGS[flag]:
            raise FileError(f"{file} has the flag {flag}: {reason}. Write it again without that.")
    if size > METADATA_BYTES:
        raise FileError(f"{file} has {size} bytes of metadata; the format allows {METADATA_BYTES}. It is damaged.")
    if data_at > HEADER_BYTES or n_tensor > TENSORS:
        raise FileError(f"{file} claims {n_tensor} tensors and data from byte {data_at}; at most {TENSORS} and "
                        f"{HEADER_BYTES} are read. The header is damaged; write the file again.")
    if not APR_HEADER.size <= at <= at + size <= index_at <= data_at:
        raise FileError(
            f"{file}: metadata at {at} ({size} bytes), index at {index_at} and data at {data_at} overlap. "
            "The header is damaged; write the file again.",
        )
    if data_at + FOOTER > len(data):
        raise _cut_short(file, "its index and footer end", data_at + FOOTER, len(data))
    return Header(flags, n_tensor, slice(at, at + size), slice(index_at, data_at), data_at)


def read_index(file: str, index: Bytes, n_tensor: int) -> list[Entry]:
    """Read the index: sorted by name, byte by byte, no name twice."""
    if n_tensor * ENTRY_BYTES > len(index):
        raise _damaged_index(file, f"{n_tensor} tensors do not fit into its {len(index)} bytes")
    entries: list[Entry] = []
    at, before = 0, b""
    for i in range(n_tensor):
        try:
            entry, name, at = _read_entry(file, index.data, at)
        except struct.error:
            raise _damaged_index(file, f"entry {i} of {n_tensor} runs past its end") from None
        if name <= before:
            reason = "stands there twice" if name == before else f"comes after {quote_name(entries[-1].name)}"
            raise _damaged_index(file, f"{quote_name(entry.name)} {reason}; names must be sorted and differ")
        before = name
        entries.append(entry)
    return entries


def verify_footer(file: str, data: Bytes) -> None:
    """Check the CRC over every byte before the footer; FileError if it differs."""
    crc, end = 0, len(data) - FOOTER
    for at in range(0, end, _CHUNK):
        crc = zlib.crc32(data[at : min(at + _CHUNK, end)].data, crc)
    told = int.from_bytes(bytes(data[end:]), "little")
    if crc != told:
        raise FileError(
            f"{file}: its footer's checksum is {told:#010x}, but its bytes give {crc:#010x}: "
            "they were changed or damaged after it was written. Copy or convert it again.",
        )


def _read_entry(file: str, index: memoryview, at: int) -> tuple[Entry, bytes, int]:
    (length,) = struct.unpack_from("<H", index, at)
    raw, at = bytes(index[at + 2 : at + 2 + length]), at + 2 + length
    if not 0 < length <= MAX_NAME:
        raise _damaged_index(file, f"a name has {length} bytes; 1 to {MAX_NAME} were expected")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _damaged_index(file, f"the name {raw!r} is not UTF-8 text") from None
    code, n_dim = struct.unpack_from("<BB", index, at)
    if n_dim > MAX_DIMS:
        raise _damaged_index(file, f"{quote_name(name)} has {n_dim} dimensions; at most {MAX_DIMS} were expected")
    *shape, offset, size = struct.unpack_from(f"<{n_dim + 2}Q", index, at + 2)
    quant = BY_APR_CODE.get(code)
    if quant is None:
        known = ", ".join(f"{code} {quant.name}" for code, quant in BY_APR_CODE.items())
        raise FileError(
            f"{file}: {quote_name(name)} has dtype code {code}; this build reads {known}. Convert it again."
        )
    if 0 in shape:
        raise _damaged_index(file, f"{quote_name(name)} has a dimension of 0: {shape}")
    needed = tensor_bytes(quant, tuple(shape))
    if size != needed:
        raise _damaged_index(file,
                             f"{quote_name(name)} ({quant.name} {shape}) has {size} bytes; that type needs {needed}")
    return Entry(name, quant, tuple(shape), offset, size), raw, at + 2 + 8 * (n_dim + 2)


def _check_places(file: str, header: Header, entries: list[Entry], file_bytes: int) -> None:
    """Hold every tensor to the alignment and its neighbours, and the file to its length."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda e: e.offset):
        if entry.offset % ALIGNMENT:
            what = f"{quote_name(entry.name)} is at offset {entry.offset}"
            raise _damaged_index(file, f"{what}, not a multiple of {ALIGNMENT}")
        if entry.offset < end:
            raise _damaged_index(file, f"{quote_name(entry.name)} overlaps {quote_name(before)}")
        end, before = entry.offset + entry.size_bytes, entry.name
    needed = header.data_offset + end + -end % ALIGNMENT + FOOTER
    if file_bytes < needed:
        raise _cut_short(file, f"tensor {quote_name(before)} and the footer end", needed, file_bytes)
    if file_bytes > needed and not header.flags & FLAGS["SIGNED"]:
        raise FileError(
            f"{file} has {file_bytes} bytes; its header and index describe {needed}. "
            "Something was appended; copy or download it again.",
        )


def _cut_short(file: str, what: str, needed: int, found: int) -> FileError:
    return FileError(f"{file} is cut short: {what} at byte {needed}, but it has {found}. Copy or download it again.")


def _damaged_index(file: str, what: str) -> FileError:
    return FileError(f"{file}: in its tensor index, {what}. The file is damaged; write or download it again.")
