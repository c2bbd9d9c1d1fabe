"""Read the arrays of an .npy, .npz or .safetensors file, by their own headers: no pickle, no library that unpickles.

Nothing is trusted: each shape must fill its bytes exactly, and what is above a limit is refused before it is read.
Source: NEP 1 (npy 1.0 to 3.0), the zip of numpy.savez, safetensors' format (a JSON header behind its u64 length).
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.system.errors import FileError
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES, STAGE_BYTES, TENSORS
from core.system.regular_file import open_file, read_file

AGAIN = "Save the arrays again, whole."
SUFFIXES = (".npz", ".npy", ".safetensors")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
UNPICKLE = ("is a pickle of Python objects, which may run any code: it is never opened here. Write it anew where "
            "it was made: safetensors.torch.save_file({name: t.contiguous() for name, t in torch.load(FILE).items()}, "
            "'dump.safetensors'), or numpy.savez")
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "|u1",
          "BOOL": "|b1", "I16": "<i2", "I8": "|i1"}
_NPY = re.compile(
    rb"\{'descr': '([<|>]?(?:f[248]|[iu][1248]|b1))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,12},? ?){0,6})\), \}\s*$")
_MANY = 6  # dimensions

Array = np.ndarray[Any, np.dtype[Any]]


def read_arrays(path: Path) -> Iterator[tuple[str, Array, str]]:
    """Yield name, array and dtype's name of each array of a file; FileError. An .npy is named as its file is."""
    kind = path.suffix.lower()
    if kind == ".npy":
        x = _npy(path.name, read_file(path, STAGE_BYTES, AGAIN))
        yield path.stem, x, x.dtype.name
    elif kind == ".npz":
        yield from _npz(path)
    else:
        yield from _safetensors(path)


def floats(name: str, x: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The array in float32; FileError where it holds no floats."""
    if x.dtype.kind != "f":
        raise FileError(f"{name} holds {x.dtype.name}; floats were needed. {AGAIN}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(x, dtype=np.float32, order="C")


def _npy(name: str, data: bytes) -> Array:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise FileError(f"{name} does not begin as an .npy does. {AGAIN}")
    width, code = (2, "<H") if data[6] == 1 else (4, "<I")
    begin = 8 + width
    (length,) = struct.unpack_from(code, data, 8)
    header = data[begin:begin + length] if length <= 1 << 16 else b""
    found = _NPY.match(header)
    if found is None:
        why = ("holds Python objects, which are never unpickled here" if b"'|O" in header
               else "has no header of one array")
        raise FileError(f"{name} {why}. {AGAIN}")
    shape = tuple(int(n) for n in found[3].replace(b" ", b"").split(b",") if n)
    return _filled(name, data[begin + length:], np.dtype(found[1].decode()), shape, fortran=found[2] == b"True")


def _filled(name: str, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran: bool = False) -> Array:
    if len(shape) > _MANY or math.prod(shape) * dtype.itemsize != len(data):
        raise FileError(f"{name}: shape {list(shape)} of {dtype.name} needs {math.prod(shape) * dtype.itemsize} bytes "
                        f"and it has {len(data)}. It is cut short or damaged. {AGAIN}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _npz(path: Path) -> Iterator[tuple[str, Array, str]]:
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path, STAGE_BYTES, AGAIN))) as found:
            entries = found.infolist()
            if len(entries) > TENSORS or sum(e.file_size for e in entries) > STAGE_BYTES:
                raise FileError(f"{path.name} unpacks to more than {STAGE_BYTES} bytes or {TENSORS} arrays. {AGAIN}")
            names = [e.filename for e in entries]
            if len(set(names)) != len(names):
                raise FileError(f"{path.name} has two arrays of one name. {AGAIN}")
            for entry in entries:
                x = _npy(f"{path.name}, {ascii(entry.filename)[1:60]}", _unpacked(found, entry))
                yield entry.filename.removesuffix(".npy"), x, x.dtype.name
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error,
            OverflowError, OSError, IndexError) as error:
        raise FileError(f"{path.name} is no whole .npz: {error}. {AGAIN}") from error


def _unpacked(found: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with found.open(entry) as file:
        data = file.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise FileError(f"{entry.filename!a} unpacks to another size than it says. {AGAIN}")
    return data


def _safetensors(path: Path) -> Iterator[tuple[str, Array, str]]:
    with open_file(path, STAGE_BYTES, AGAIN) as file:
        data = file.read()
    (length,) = struct.unpack_from("<Q", data) if len(data) >= 8 else (1 << 63,)
    if length > min(len(data) - 8, DOCUMENT_BYTES):
        raise FileError(f"{path.name} is no whole .safetensors: its header would end behind its "
                        f"{len(data)} bytes. {AGAIN}")
    header = from_json(data[8:8 + length], f"{path.name}'s header", AGAIN)
    body, end = memoryview(data)[8 + length:], 0
    if not isinstance(header, dict):
        raise FileError(f"{path.name} has a header that is no JSON object. {AGAIN}")
    for name, said in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, stop) = _entry(path, name, said)
        end = max(end, stop)
        x = _filled(f"{path.name}, {ascii(name)[1:60]}", bytes(body[begin:stop]), np.dtype(DTYPES[dtype]), shape)
        if dtype == "BF16":
            x = (x.astype(np.uint32) << 16).view(np.float32)
        yield name, x, {"BF16": "bfloat16"}.get(dtype, x.dtype.name)
    if end != len(body):
        raise FileError(f"{path.name} has {len(body)} bytes of arrays, its header tells of {end}. {AGAIN}")


def _entry(path: Path, name: str, said: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    known = said if isinstance(said, dict) else {}
    dtype, shape, at = known.get("dtype"), _counts(known.get("shape")), _counts(known.get("data_offsets"))
    fits = shape is not None and at is not None and len(at) == 2 and at[0] <= at[1]
    if not isinstance(dtype, str) or dtype not in DTYPES or not fits or shape is None or at is None:
        raise FileError(f"{path.name}, {ascii(name)[:60]}: a dtype of {', '.join(DTYPES)}, a shape and two offsets "
                        f"were needed. {AGAIN}")
    return dtype, shape, (at[0], at[1])


def _counts(found: object) -> tuple[int, ...] | None:
    fine = isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 53 for n in found)
    return tuple(found) if fine and isinstance(found, list) else None
