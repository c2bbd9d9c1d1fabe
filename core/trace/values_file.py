"""Write and read stage values as a safetensors file, a stage at a time. No torch, and no second copy in memory.

Source: the safetensors format: u64 little-endian header size, JSON header, data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.model.stages import Place, parse_place, place_order, place_text
from core.system.errors import FileError, UsageError, os_reason
from core.system.regular_file import refuse_irregular

DTYPES = {"float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def write_values(path: Path, values: Mapping[Place, Any]) -> str:
    """Write every stage's values [T, width], dtype as computed, and return the file's sha256."""
    places = sorted(values, key=place_order)
    header, offset = {}, 0
    for place in places:
        shape, (dtype, size) = [int(n) for n in values[place].shape], DTYPES[_dtype_name(values[place])]
        end = offset + size * int(np.prod(shape))
        header[place_text(place)] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in chain((len(text).to_bytes(8, "little"), text), (_bytes(values[p]) for p in places)):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def _dtype_name(value: Any) -> str:  # noqa: ANN401 (a torch tensor or a numpy array)
    return str(value.dtype).removeprefix("torch.")


def _bytes(value: Any) -> bytes:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return value.tobytes()
    tensor = value.detach().cpu().contiguous()
    if _dtype_name(value) == "bfloat16":  # its bits are the upper half of the float32 of the same value
        return bytes((tensor.float().numpy().view(np.uint32) >> 16).astype("<u2").tobytes())
    return bytes(tensor.numpy().tobytes())


@dataclass(frozen=True, slots=True)
class StoredValues(Mapping[Place, npt.NDArray[Any]]):
    """The values of a bundle, each read when it is asked for; bfloat16 comes as float32."""

    path: Path
    names: Mapping[Place, str]

    def __getitem__(self, place: Place) -> npt.NDArray[Any]:
        return _read(self.path, self.names[place])

    def __iter__(self) -> Iterator[Place]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def open_values(path: Path) -> StoredValues:
    """List a values file's stages; FileError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    refuse_irregular(path, "Trace again with --values.")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a readable safetensors file: {os_reason(error)}. "
                        "Trace again with --values.") from error
    return StoredValues(path, {_place(name, path): name for name in names})


def _place(name: str, path: Path) -> Place:
    try:
        return parse_place(name)
    except UsageError as error:
        raise FileError(f"{path}: {error} Trace again with --values.") from error


def _read(path: Path, name: str) -> npt.NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if file.get_slice(name).get_dtype() != "BF16":
                found: npt.NDArray[Any] = file.get_tensor(name)
                return found
        return _read_bfloat16(path, name)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: {name} cannot be read: {os_reason(error)}. Trace again with --values.") from error


def _read_bfloat16(path: Path, name: str) -> npt.NDArray[np.float32]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + size + start)
        bits = np.frombuffer(file.read(end - start), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])
