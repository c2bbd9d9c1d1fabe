"""Write a GGUF v3 file through gguf-py's writer, tensor data as a stream. Nothing is decoded here.

The same model gives the same bytes. Keys keep the type that the source stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.model_file import USUAL, LazyArray, ModelFile
from core.formats.tensor_stream import TensorStream, passthrough
from core.quant.types import QUANTS
from core.system.atomic_file import new_file
from core.system.errors import FileError
from core.system.mapped_file import quote_name, refuse_cut

MOST_ALIGNMENT = 1 << 16  # so many zeros may stand before each tensor


def write_gguf(
    path: Path, model: ModelFile, streams: Sequence[TensorStream] | None = None, force: bool = False
) -> None:
    """Write a model; streams stand for its weights where those must change on the way.

    Errors: UsageError, OutputError (new_file); FileError where GGUF cannot hold a tensor or a value.
    """
    streams = [passthrough(weight) for weight in model.weights.values()] if streams is None else streams
    with new_file(path, force) as part:
        alignment = _write_header(part, model, streams)
        with part.open("ab") as out:
            for tensor in streams:
                _pad(out, alignment)
                for piece in tensor.pieces():
                    out.write(piece.data)
            _pad(out, alignment)
        refuse_cut()


def _write_header(part: Path, model: ModelFile, streams: Sequence[TensorStream]) -> int:
    """Write everything before the data; returns the alignment."""
    import gguf

    arch = model.key("general.architecture")
    if not isinstance(arch, str):
        raise FileError(f"{model.path.name} does not say its architecture; GGUF needs it. Convert the model again.")
    writer = gguf.GGUFWriter(part, arch)
    try:
        for name, value in model.keys.items():
            if name == "general.alignment":
                writer.add_custom_alignment(_alignment(model, value))
            elif name != "general.architecture" and not name.startswith("apr."):
                _add_key(writer, model, name)
        for tensor in streams:
            writer.add_tensor_info(*_tensor_info(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        return int(writer.data_alignment)
    finally:
        writer.close()


def _alignment(model: ModelFile, value: object) -> int:
    if type(value) is not int or not 0 < value <= MOST_ALIGNMENT or value & (value - 1):
        raise FileError(f"{model.path.name}: general.alignment is {value!r}; a power of 2 up to {MOST_ALIGNMENT} was "
                        "needed. Write the file again.")
    return value


def _add_key(writer: Any, model: ModelFile, name: str) -> None:  # noqa: ANN401 (gguf has no types)
    import gguf

    value, kinds = model.keys[name], gguf.GGUFValueType
    if isinstance(value, LazyArray):
        if value.count:  # gguf-py cannot write an empty array, and it says nothing
            writer.add_key_value(name, value.load(), kinds.ARRAY, kinds[value.type])
        return
    writer.add_key_value(name, value, kinds[model.types.get(name, USUAL[type(value)])])


def _tensor_info(tensor: TensorStream) -> tuple[Any, ...]:
    """Name, shape, numpy type, bytes and GGUF type, as gguf-py asks for them."""
    import gguf
    import numpy as np

    quant, shape = QUANTS[tensor.quant], tensor.shape or (1,)
    if quant.ggml_id is None or shape[-1] % quant.block:
        raise FileError(
            f"{quote_name(tensor.name)} is {tensor.quant} in rows of {shape[-1]} values; GGUF has no such rows. "
            "Decode it.",
        )
    assert tensor.size_bytes == prod(shape) // quant.block * quant.block_bytes
    kind = gguf.GGMLQuantizationType(quant.ggml_id)
    return (tensor.name, shape, np.dtype(np.float32), tensor.size_bytes, kind)  # not uint8: shape is in values


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(bytes(-out.tell() % alignment))
