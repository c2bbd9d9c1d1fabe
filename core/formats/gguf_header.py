"""Read the bytes of a GGUF header: numbers, strings, values, arrays. What they mean: gguf_reader.

Strings of an array are skipped and not made, so a vocabulary of 152,000 tokens costs some 20 ms. Nothing is trusted:
every read is checked against the end of the file.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from core.formats.model_file import LazyArray, Value
from core.system.arrays import Bytes
from core.system.errors import FileError
from core.system.limits import ARRAY_ITEMS, HEADER_BYTES
from core.system.mapped_file import quote_name

BOOL, STRING, ARRAY = 7, 8, 9
VALUE_TYPES: dict[int, tuple[str, str]] = {  # id -> GGUF's name, struct code ("" where it has no fixed size)
    0: ("UINT8", "<B"), 1: ("INT8", "<b"), 2: ("UINT16", "<H"), 3: ("INT16", "<h"), 4: ("UINT32", "<I"),
    5: ("INT32", "<i"), 6: ("FLOAT32", "<f"), 7: ("BOOL", "<?"), 8: ("STRING", ""), 9: ("ARRAY", ""),
    10: ("UINT64", "<Q"), 11: ("INT64", "<q"), 12: ("FLOAT64", "<d"),
}
_PIECE_NAME = re.compile(  # of split(1) and of those who cut a file by hand: .part1of3, .001, .aa
    r"[._-]((part|piece|split)[-_]?[0-9a-z]{1,3}([-_]?of[-_]?[0-9]+)?|[0-9]{3}|a[a-z])$", re.IGNORECASE)
_U64 = struct.Struct("<Q")


class HeaderReader:
    """A place in a header that moves forward."""

    def __init__(self, path: Path, data: Bytes) -> None:
        self.file, self.data, self.buffer, self.at, self.size = path.name, data, data.data, 0, len(data)

    def damaged(self, what: str) -> FileError:
        """Make the error for a header that says something impossible."""
        return FileError(f"{self.file}: {what} The header is damaged; copy or download the file again.")

    def needs(self, n_bytes: int, what: str) -> None:
        """Check that so many bytes are left, and that a header may have them."""
        self.holds(n_bytes, what)
        self.allows(self.at + n_bytes, HEADER_BYTES, f"{what} ends at byte")

    def allows(self, found: int, most: int, what: str) -> None:
        """Hold a number to its limit: a file of a few bytes, or a sparse one, may claim anything."""
        if found > most:
            raise self.damaged(f"{what} {found}; at most {most} is read.")

    def holds(self, n_bytes: int, what: str) -> None:
        """Check that the file has so many bytes left."""
        if n_bytes > self.size - self.at:
            raise FileError(
                f"{self.file} is cut short or damaged: {what} would end at byte {self.at + n_bytes}, "
                f"but the file has {self.size}. {self.repair()}",
            )

    def scalar(self, code: str, what: str) -> Any:  # noqa: ANN401 (a number of any type)
        """Read one number."""
        self.needs(struct.calcsize(code), what)
        (value,) = struct.unpack_from(code, self.buffer, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self, what: str) -> bytes:
        """Read one string, as bytes."""
        length = self.scalar("<Q", what)
        self.needs(length, what)
        self.at += length
        return bytes(self.buffer[self.at - length : self.at])

    def name(self, what: str) -> str:
        """Read a string that names something: it must be UTF-8 and not empty."""
        begin = self.at
        try:
            name = self.text(what).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} at byte {begin} is not UTF-8 text.") from None
        if not name:
            raise self.damaged(f"{what} at byte {begin} is empty.")
        return name

    def value(self, key: str) -> tuple[Value, str]:
        """Read one value, with the name of its type."""
        what = f"key {quote_name(key)}"
        kind = self.kind(what)
        name, code = VALUE_TYPES[kind]
        if kind == ARRAY:
            return self.array(what), name
        if kind == STRING:
            return self.text(what).decode(errors="replace"), name
        value: Value = self.scalar(code, what)
        return value, name

    def repair(self) -> str:
        """What to do with a file that ends early: the pieces of a cut one are joined, those of a split one are not."""
        if _PIECE_NAME.search(self.file):
            return "Its name is that of a piece: join all of them in order with cat, and open what comes of it."
        return "Copy or download it again."

    def kind(self, what: str) -> int:
        """Read the id of a value's type."""
        kind = int(self.scalar("<I", what))
        if kind not in VALUE_TYPES:
            raise self.damaged(f"{what} has value type {kind}; GGUF has 0 to 12.")
        return kind

    def array(self, what: str) -> LazyArray:
        """Step over an array, keeping where it stands."""
        kind = self.kind(what)
        if kind == ARRAY:
            raise FileError(f"{self.file}: {what} is an array of arrays, which no known model needs. Convert it again.")
        name, code = VALUE_TYPES[kind]
        count = int(self.scalar("<Q", what))
        item_bytes = _U64.size if kind == STRING else struct.calcsize(code)
        self.holds(count * item_bytes, f"{what} ({count} items)")
        self.allows(count, ARRAY_ITEMS, f"the number of items of {what} is")
        self.needs(count * item_bytes, what)
        begin, data = self.at, self.data
        if kind == STRING:
            self.skip_strings(count, what)
            return LazyArray(name, count, lambda: _strings(data, begin, count), data[begin : self.at])
        self.at += count * item_bytes
        raw = data[begin : self.at]
        if kind == BOOL:
            return LazyArray(name, count, lambda: (raw != 0).tolist(), raw)
        return LazyArray(name, count, lambda: raw.view(np.dtype(code)).tolist(), raw)

    def skip_strings(self, count: int, what: str) -> None:
        """Step over so many strings; locals, because a vocabulary and its merges are 300,000 of them."""
        unpack, buffer, at = _U64.unpack_from, self.buffer, self.at
        try:
            for _ in range(count):
                at += 8 + unpack(buffer, at)[0]
        except (struct.error, OverflowError):  # the last length led past the end
            at = max(at, self.size + 1)
        self.needs(at - self.at, f"{what} ({count} strings)")
        self.at = at


def _strings(data: Bytes, at: int, count: int) -> list[str]:
    unpack, buffer, out = _U64.unpack_from, data.data, []
    for _ in range(count):
        begin = at + 8
        at = begin + unpack(buffer, at)[0]
        out.append(str(buffer[begin:at], "utf-8", "replace"))
    return out
