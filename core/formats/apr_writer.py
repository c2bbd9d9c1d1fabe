"""Write an .apr v2 file: metadata from GGUF's keys, index sorted by name, data as a stream. Nothing is decoded here.

The same model gives the same bytes: no time and no path is written. Tensors stand in the order of the index.
Source: apr-format v2, writer and streaming_writer.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.apr_keys import ALWAYS, FIRST, FLAGS, KEYS, apr_tensor
from core.formats.apr_reader import ALIGNMENT, APR_HEADER, MAGIC, MAX_DIMS, MAX_NAME
from core.formats.model_file import USUAL, LazyArray, ModelFile, Value
from core.formats.tensor_stream import TensorStream, passthrough
from core.quant.types import QUANTS
from core.system.atomic_file import new_file
from core.system.errors import FileError
from core.system.limits import METADATA_BYTES
from core.system.mapped_file import quote_name, refuse_cut


def write_apr(path: Path, model: ModelFile, streams: Sequence[TensorStream] | None = None, force: bool = False) -> None:
    """Write a model; streams stand for its weights where those must change on the way.

    Errors: UsageError, OutputError (new_file); FileError where .apr cannot hold a tensor or the metadata.
    """
    streams = [passthrough(weight) for weight in model.weights.values()] if streams is None else streams
    renamed = [replace(tensor, name=apr_tensor(tensor.name)) for tensor in streams]
    flags = FLAGS["HAS_VOCAB"] if "tokenizer.ggml.tokens" in model.keys else 0
    metadata = apr_metadata(model, renamed)
    with new_file(path, force) as part, part.open("wb") as out:
        write_container(out, metadata, renamed, flags)
        refuse_cut()


def write_container(
    out: BinaryIO, metadata: Mapping[str, Any], streams: Sequence[TensorStream], flags: int = 0
) -> None:
    """Write header, metadata, index, data and footer; tensor names are .apr's by now."""
    streams = sorted(streams, key=lambda tensor: tensor.name.encode())
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > METADATA_BYTES:
        raise FileError(f"the metadata takes {len(text)} bytes; .apr allows {METADATA_BYTES}. "
                        "Leave out the vocabulary.")
    index = b"".join(_index_entries(streams))
    index_at = APR_HEADER.size + len(text) + -len(text) % ALIGNMENT
    data_at = index_at + len(index) + -len(index) % ALIGNMENT
    flags |= FLAGS["LAYOUT_ROW_MAJOR"]
    if any(not QUANTS[tensor.quant].is_plain for tensor in streams):
        flags |= FLAGS["QUANTIZED"]
    facts = (MAGIC, 2, 0, flags, len(streams), APR_HEADER.size, len(text), index_at, data_at)
    head = APR_HEADER.pack(*facts, 0)
    head = APR_HEADER.pack(*facts, zlib.crc32(head[44:], zlib.crc32(head[:40])))
    crc = 0
    for piece in _padded([[head], [text], [index], *(tensor.pieces() for tensor in streams)]):
        crc = zlib.crc32(piece, crc)
        out.write(piece)
    out.write(struct.pack("<I", crc))


def apr_metadata(model: ModelFile, streams: Sequence[TensorStream]) -> dict[str, Any]:
    """Return the metadata, one spelling a key; GGUF keys without an .apr key go into the object `gguf`."""
    arch = str(model.key("general.architecture", "unknown"))
    out: dict[str, Any] = {
        "model_type": arch, **dict.fromkeys(ALWAYS), "original_format": model.format,
        "total_size": sum(tensor.size_bytes for tensor in streams),
        "param_count": sum(prod(tensor.shape) for tensor in streams),
    }
    kept: dict[str, Any] = {}
    keys = _with_needed(model, arch)
    apr = {key.gguf.format(arch=arch): key for key in KEYS}
    for name, value in keys.items():
        kind = _type(model, name, value)
        key = apr.get(name)
        if key is None or key.type.endswith("[]") != isinstance(value, LazyArray):
            kept[name] = {"type": kind, "value": _json(value)}
            continue
        out[key.apr] = _json(value)
        if kind != key.type:  # the value stands above; only its type is unusual
            kept[name] = {"type": kind}
    if "tokenizer.vocabulary" in out:
        out["tokenizer.vocab_size"] = len(out["tokenizer.vocabulary"])
    if any(tensor.name == "model.embed_tokens.weight" for tensor in streams):
        out["tied_embeddings"] = all(tensor.name != "lm_head.weight" for tensor in streams)
    if kept:
        out["gguf"] = kept
    order = dict.fromkeys((*FIRST, *(key.apr for key in KEYS), *out))
    return {name: out[name] for name in order if name in out}


def _with_needed(model: ModelFile, arch: str) -> dict[str, Value]:
    """Return the model's keys with those that .apr's readers need and GGUF may leave out."""
    keys = dict(model.keys)
    head_dim = keys.get(f"{arch}.attention.key_length")
    if head_dim is not None and keys.get(f"{arch}.attention.value_length") == head_dim:
        del keys[f"{arch}.attention.value_length"]  # .apr says both with head_dim
    if f"{arch}.attention.head_count" in keys:
        keys.setdefault(f"{arch}.attention.head_count_kv", keys[f"{arch}.attention.head_count"])
    embedding = model.weights.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        keys.setdefault(f"{arch}.vocab_size", embedding.shape[0])
    return keys


def _type(model: ModelFile, name: str, value: Value) -> str:
    """Name the value's type in GGUF; the usual one where the file did not say."""
    return f"{value.type}[]" if isinstance(value, LazyArray) else model.types.get(name, USUAL[type(value)])


def _json(value: Value) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, LazyArray):
        return [_json(item) for item in value.load()]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _index_entries(streams: Iterable[TensorStream]) -> Iterator[bytes]:
    offset = 0
    for tensor in streams:
        name, code = tensor.name.encode(), QUANTS[tensor.quant].apr_code
        if code is None:
            raise FileError(
                f"{quote_name(tensor.name)} is {tensor.quant}; .apr has no such type. Give --to f16 or f32."
            )
        if len(name) > MAX_NAME or len(tensor.shape) > MAX_DIMS:
            raise FileError(f"{quote_name(tensor.name)}: .apr holds {MAX_NAME} bytes of name, {MAX_DIMS} dimensions.")
        yield struct.pack(
            f"<H{len(name)}sBB{len(tensor.shape) + 2}Q", len(name), name, code, len(tensor.shape), *tensor.shape,
            offset, tensor.size_bytes,
        )
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT


def _padded(sections: Iterable[Iterable[Any]]) -> Iterator[bytes | memoryview]:
    """Yield each section's pieces, then zeros up to the alignment."""
    for section in sections:
        n_bytes = 0
        for piece in section:
            view = piece if isinstance(piece, bytes) else piece.data
            n_bytes += len(view)
            yield view
        yield bytes(-n_bytes % ALIGNMENT)
