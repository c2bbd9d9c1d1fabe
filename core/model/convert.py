"""Convert a model file between GGUF and .apr; the bytes of its tensors are kept where both formats have their type.

It decides what becomes of each tensor and key; the writers write. No weight is quantised here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from core.formats.apr_writer import write_apr
from core.formats.architectures import rope_row_order
from core.formats.gguf_writer import write_gguf
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.formats.tensor_stream import TensorStream, passthrough
from core.model.arch import family_of, head_width
from core.model.ropes import PAIRINGS, pairing_said
from core.quant.types import QUANTS, Quant, tensor_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.atomic_file import refuse_existing
from core.system.errors import FileError, UsageError
from core.system.mapped_file import quote_name

WRITERS: dict[str, Callable[..., None]] = {".apr": write_apr, ".gguf": write_gguf}
DECODED = {"f16": "F16", "f32": "F32"}
_STEP = 1 << 21  # values decoded at once


def convert(src: Path, dst: Path, to: str | None = None, force: bool = False) -> tuple[str, ...]:
    """Write src again in the format that dst's name ends in; returns notes for a person.

    to: f16 or f32, for tensors whose type that format does not have. A checksum over the source is checked first.
    Errors: UsageError, FileError, OutputError.
    """
    suffix = dst.suffix.lower()
    if suffix not in WRITERS:
        raise UsageError(f"{dst.name} ends in neither .gguf nor .apr, which says the format. Rename the output.")
    if to is not None and to not in DECODED:
        raise UsageError(f"--to {to} is not known; it takes f16 or f32.")
    refuse_existing(dst, force)  # the writer checks again; a person should not wait for the checksum first
    model = open_model(src)
    if dst.exists() and dst.samefile(src):
        raise UsageError(f"{dst} is the file that is read. Give the output another name.")
    if model.verify is not None:
        model.verify()
    model, notes = _keys_for(suffix, model)
    streams, decoded = _pack(suffix, model, to)
    WRITERS[suffix](dst, model, streams, force)
    return (*model.notes, *notes, *decoded)


# --- keys ------------------------------------------------------------------------------------------------------------


def _keys_for(suffix: str, model: ModelFile) -> tuple[ModelFile, list[str]]:
    """Say the RoPE pairing as the new format does: a key in .apr; in GGUF the order of the rows of q and k."""
    family, said = family_of(model), pairing_said(model)
    if family is None:
        lost = said is not None and suffix == ".gguf"
        return model, [f"the RoPE pairing ({said}) is lost: GGUF has no key for it"] if lost else []
    if suffix == ".apr":
        pairing = said or family.pairing
        code = next(code for code, name in PAIRINGS.items() if name == pairing)
        return replace(model, keys={**model.keys, "apr.rope_type": code}), []
    if said is None or said == family.pairing:
        return model, []
    weights = {name: _turned(model, weight, said) for name, weight in model.weights.items()}
    note = f"rows of q and k were put in another order: the source pairs {said} for RoPE, GGUF's {family.pairing}"
    return replace(model, weights=weights), [note]


def _turned(model: ModelFile, weight: Weight, pairing: str) -> Weight:
    """Put the rows of a q or k tensor from the pairing's order into the other's; any other tensor stays."""
    part = weight.name.split(".")
    if len(part) != 4 or part[0] != "blk" or part[2] not in ("attn_q", "attn_k", "attn_q_norm", "attn_k_norm"):
        return weight
    arch, width, n_row = model.key("general.architecture"), head_width(model), weight.shape[0]
    if width < 2 or width % 2 or n_row % width or model.key(f"{arch}.rope.dimension_count", width) != width:
        raise FileError(f"{quote_name(weight.name)} has {n_row} rows, heads have {width}: GGUF's order is impossible.")
    order = rope_row_order(n_row, width, pairing)
    if QUANTS[weight.quant].whole:
        decoded = np.concatenate(list(_decoded(weight, "F32")))
        weight = Weight(weight.name, "F32", weight.shape, decoded)
    return replace(weight, data=weight.data.reshape(n_row, -1)[order].reshape(-1))


# --- tensors ---------------------------------------------------------------------------------------------------------


def _pack(suffix: str, model: ModelFile, to: str | None) -> tuple[list[TensorStream], list[str]]:
    """Keep every tensor that the new format can hold and decode the others; refuse where nobody said into what."""
    others = [weight for weight in model.weights.values() if not _holds(suffix, QUANTS[weight.quant], weight.shape)]
    if suffix == ".apr" and others and to is None:
        raise FileError(_refusal(model, others))
    target = DECODED[to or "f32"]
    decoded = {weight.name for weight in others}
    streams = [
        _decoding(weight, target) if weight.name in decoded else passthrough(weight)
        for weight in model.weights.values()
    ]
    if not others:
        return streams, []
    types = ", ".join(sorted({weight.quant for weight in others}))
    return streams, [f"{len(others)} of {len(streams)} tensors ({types}) were decoded to {target}: not in {suffix}"]


def _holds(suffix: str, quant: Quant, shape: tuple[int, ...]) -> bool:
    if suffix == ".apr":
        return quant.apr_code is not None
    return quant.ggml_id is not None and (shape[-1] if shape else 1) % quant.block == 0


def _refusal(model: ModelFile, others: list[Weight]) -> str:
    kept = model.size_bytes - sum(len(weight.data) for weight in others)
    f16, f32 = (kept + sum(tensor_bytes(QUANTS[quant], each.shape) for each in others) for quant in DECODED.values())
    types = ", ".join(sorted({weight.quant for weight in others}))
    return (
        f"{model.path.name} has {len(others)} tensors of types without a code in .apr ({types}), first "
        f"{quote_name(others[0].name)}. Decoded, it would take {_size(f16)} (--to f16) or {_size(f32)} (--to f32), not "
        f"{_size(model.size_bytes)}. Say which with --to."
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"


def _decoding(weight: Weight, target: str) -> TensorStream:
    return TensorStream(weight.name, target, weight.shape, lambda: _decoded(weight, target))


def _decoded(weight: Weight, target: str) -> Iterator[Bytes]:
    """Decode a tensor, some rows at a time."""
    from core.kernels.cpu.decoding import decode_rows  # torch: only where something must be decoded

    cols = weight.shape[-1] if weight.shape else 1
    n_row, step = (prod(weight.shape[:-1]), max(1, _STEP // cols)) if len(weight.shape) > 1 else (cols, cols)
    for row in range(0, n_row, step):
        values = decode_rows(weight, row, min(row + step, n_row)).numpy().reshape(-1)
        if target == "F16":
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if np.any(np.isinf(halves) & np.isfinite(values)):
                peak = float(np.nanmax(np.abs(values)))
                raise FileError(f"{quote_name(weight.name)} holds {peak:.6g}, more than float16 can. Use --to f32.")
            yield halves.view(np.uint8)
        else:
            yield values.view(np.uint8)
