"""Byte surgery on a copy of a GGUF file: keys, tensors, blocks. Pure edits; no product code reads or writes here.

A ModelCopy is the file in memory, its tensors still mapped. An edit replaces what it touches, never writes in place,
so that a copy costs two dicts. Shapes are (rows, cols).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

from tests.trained.quantisers import Bytes, Floats, decode, encode

# type -> offsets of a block's float16 scales, the step first
HALVES = {
    T.Q4_0: (0,), T.Q4_1: (0, 2), T.Q5_0: (0,), T.Q5_1: (0, 2), T.Q8_0: (0,), T.Q2_K: (80, 82), T.Q3_K: (108,),
    T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,),
}
NIBBLES = {T.Q4_0: (2, 18), T.Q4_1: (4, 20), T.Q5_0: (6, 22), T.Q5_1: (8, 24), T.Q4_K: (16, 144)}  # bytes of a block
LEAST = (T.Q4_1, T.Q5_1)  # types whose second half is added to every weight of a block
PACKED = {V.UINT32: "<I", V.INT32: "<i", V.FLOAT32: "<f", V.BOOL: "<?", V.UINT64: "<Q", V.FLOAT64: "<d"}

Edit = Callable[["ModelCopy"], object]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its type, its shape and its bytes, flat."""

    kind: T
    shape: tuple[int, ...]
    data: Bytes


@dataclass(slots=True)
class ModelCopy:
    """A GGUF file to be changed. keys: name -> its whole entry as bytes, in the file's order."""

    keys: dict[str, bytes]
    tensors: dict[str, Tensor]
    scalars: dict[str, object]  # keys of one value, decoded
    alignment: int = 32

    def copy(self) -> ModelCopy:
        """Another copy that may be changed by itself."""
        return ModelCopy(dict(self.keys), dict(self.tensors), dict(self.scalars), self.alignment)

    @property
    def arch(self) -> str:
        return str(self.scalars["general.architecture"])

    def number(self, key: str, default: int | None = None) -> int:
        """The family's whole number under {arch}.key."""
        value = self.scalars.get(f"{self.arch}.{key}", default)
        assert isinstance(value, int), f"{self.arch}.{key} is {value!r}"
        return value

    @property
    def n_layer(self) -> int:
        return self.number("block_count")

    @property
    def head_dim(self) -> int:
        shared = self.number("embedding_length") // self.number("attention.head_count")
        return self.number("attention.key_length", shared)

    @property
    def is_tied(self) -> bool:
        return "output.weight" not in self.tensors

    def set_key(self, key: str, value: object, kind: V | None = None) -> None:
        """Set a key, in its place where the file has it. kind: by Python's type where none is given."""
        if kind is None:
            kinds: dict[type, V] = {bool: V.BOOL, int: V.UINT32, float: V.FLOAT32, str: V.STRING}
            kind = kinds[type(value)]
        name = key.encode()
        body = (struct.pack("<Q", len(value.encode())) + value.encode() if isinstance(value, str)
                else struct.pack(PACKED[kind], value))
        self.keys[key] = struct.pack("<Q", len(name)) + name + struct.pack("<I", int(kind)) + body
        self.scalars[key] = value

    def values(self, name: str) -> Floats:
        """Decode a tensor; a fresh array."""
        tensor = self.tensors[name]
        return np.array(decode(tensor.data, tensor.kind, tensor.shape), dtype=np.float32)

    def put_values(self, name: str, values: Floats, kind: T | None = None) -> None:
        """Quantise values into a tensor, by default in the type it has; a new name is appended."""
        kind = self.tensors[name].kind if kind is None else kind
        self.tensors[name] = Tensor(kind, values.shape, encode(values, kind))

    def rows(self, name: str) -> Bytes:
        """A fresh copy of a tensor's bytes, [rows, row bytes]; a vector is one row."""
        tensor = self.tensors[name]
        return np.array(tensor.data).reshape(tensor.shape[0] if len(tensor.shape) > 1 else 1, -1)

    def blocks(self, name: str) -> Bytes:
        """A fresh copy of a tensor's bytes, [blocks, block bytes]."""
        return np.array(self.tensors[name].data).reshape(-1, GGML_QUANT_SIZES[self.tensors[name].kind][1])

    def put_bytes(self, name: str, data: Bytes) -> None:
        """Replace a tensor's bytes, as many as it has."""
        old = self.tensors[name]
        assert data.size == old.data.size, f"{name}: {data.size} bytes for {old.data.size}"
        self.tensors[name] = Tensor(old.kind, old.shape, np.ascontiguousarray(data).reshape(-1))

    def write(self, path: Path) -> Path:
        """Write the file, version 3; keys and tensors in the order of their dicts."""
        infos, plan, at = [], [], 0
        for name, t in self.tensors.items():
            text, shape = name.encode(), t.shape[::-1]
            infos.append(struct.pack("<Q", len(text)) + text + struct.pack("<I", len(shape))
                         + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", int(t.kind), at))
            plan.append((at, t.data))
            at += t.data.size + -t.data.size % self.alignment
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        head += b"".join(self.keys.values()) + b"".join(infos)
        with open(path, "wb") as file:
            file.write(head + bytes(-len(head) % self.alignment))
            for _, data in plan:
                file.write(np.ascontiguousarray(data).data)
                file.write(bytes(-data.size % self.alignment))
        return path


def read_copy(path: Path) -> ModelCopy:
    """Read a GGUF file by gguf-py; the tensors stay mapped."""
    reader = GGUFReader(path)
    keys, scalars = {}, {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        n_byte = sum(part.nbytes for part in field.parts)
        keys[key] = np.asarray(reader.data[field.offset:field.offset + n_byte]).tobytes()
        if len(field.types) == 1:
            scalars[key] = field.contents()
    tensors = {
        t.name: Tensor(T(t.tensor_type), tuple(int(n) for n in reversed(t.shape)),
                       np.asarray(reader.data[t.data_offset:t.data_offset + int(t.n_bytes)]))
        for t in reader.tensors}
    return ModelCopy(keys, tensors, scalars, int(reader.alignment))


def keep_layers(model: ModelCopy, n_layer: int) -> None:
    """Leave the first layers only: trained weights still, and a run of a fraction of the time."""
    for name in [n for n in model.tensors if n.startswith("blk.") and int(n.split(".")[1]) >= n_layer]:
        del model.tensors[name]
    model.set_key(f"{model.arch}.block_count", n_layer)


def scale_blocks(
    model: ModelCopy, name: str, factor: float, block: int | None = None, *, step_only: bool = False,
) -> None:
    """Multiply the float16 scales of one block, or of all; step_only: the step and not the least value."""
    blocks = model.blocks(name)
    chosen = slice(None) if block is None else slice(block, block + 1)
    for at in HALVES[model.tensors[name].kind][:1 if step_only else None]:
        half = np.ascontiguousarray(blocks[chosen, at:at + 2]).view("<f2").astype(np.float32) * factor
        blocks[chosen, at:at + 2] = half.astype("<f2").view(np.uint8)
    model.put_bytes(name, blocks)


def raise_least(model: ModelCopy, name: str, constant: float) -> None:
    """Add a constant to every weight, through the least value of each block."""
    assert model.tensors[name].kind in LEAST
    blocks = model.blocks(name)
    half = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32) + constant
    blocks[:, 2:4] = half.astype("<f2").view(np.uint8)
    model.put_bytes(name, blocks)


def exchange_nibbles(model: ModelCopy, name: str) -> None:
    """Exchange the two nibbles of each byte of levels: what a decoder with the halves the wrong way round reads."""
    blocks, (start, end) = model.blocks(name), NIBBLES[model.tensors[name].kind]
    levels = blocks[:, start:end]
    blocks[:, start:end] = levels >> 4 | levels << 4
    model.put_bytes(name, blocks)


def zero_rows(model: ModelCopy, name: str, rows: Sequence[int]) -> None:
    """Zero whole rows: all bytes 0, which decodes to 0 in every type of HALVES."""
    data = model.rows(name)
    data[list(rows)] = 0
    model.put_bytes(name, data)


def reorder_rows(model: ModelCopy, name: str, order: Sequence[int] | np.ndarray) -> None:
    """Put row order[i] at row i."""
    model.put_bytes(name, model.rows(name)[np.asarray(order)])


def swap_runs(n_row: int, first: int, second: int, length: int) -> np.ndarray:
    """The order of rows in which two runs of rows are exchanged."""
    order = np.arange(n_row)
    order[first:first + length], order[second:second + length] = (
        np.arange(second, second + length), np.arange(first, first + length))
    return order


def rope_order(n_row: int, head_dim: int) -> np.ndarray:
    """Rows of each head from adjacent pairs to split halves: 0, 2, 4 .. then 1, 3, 5 .."""
    head = np.arange(n_row).reshape(-1, head_dim // 2, 2)
    return head.transpose(0, 2, 1).reshape(-1)


def take_data(model: ModelCopy, name: str, other: str) -> None:
    """Give a tensor another's type and bytes; the shapes must be equal."""
    assert model.tensors[name].shape == model.tensors[other].shape
    model.tensors[name] = model.tensors[other]


def exchange(model: ModelCopy, one: str, other: str) -> None:
    """Exchange two tensors of one shape."""
    model.tensors[one], model.tensors[other] = model.tensors[other], model.tensors[one]


def change_values(model: ModelCopy, name: str, change: Callable[[Floats], Floats], kind: T | None = None) -> None:
    """Decode, change, quantise again."""
    model.put_values(name, change(model.values(name)), kind)


def zero_tail(model: ModelCopy, n_byte: int) -> list[str]:
    """Zero the file's last bytes of data, as an interrupted download leaves them; returns the tensors that it meets."""
    met = []
    for name in reversed(list(model.tensors)):
        if n_byte <= 0:
            break
        data = np.array(model.tensors[name].data)
        data[max(0, data.size - n_byte):] = 0
        n_byte -= data.size
        model.put_bytes(name, data)
        met.append(name)
    return met


def dithered(model: ModelCopy, name: str, seed: int) -> Floats:
    """Values that could have been the original of a quantised tensor: each within half a step of what is stored."""
    tensor, values = model.tensors[name], model.values(name)
    n_weight, _ = GGML_QUANT_SIZES[tensor.kind]
    assert HALVES[tensor.kind][0] == 0 and n_weight == 32, f"{name}: one step a block is needed"
    step = np.ascontiguousarray(model.blocks(name)[:, :2]).view("<f2").astype(np.float32)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(step), n_weight)).astype(np.float32)
    return values + (noise * step).reshape(values.shape)


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The names in another order."""
    return Random(seed).sample(list(names), len(names))
