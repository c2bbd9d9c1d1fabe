"""Plant a bug in the bytes of a model, as a wrong writer or converter would leave it: a table of kinds.

Not the bugs in values, which `--plant` makes while a forward runs (value_faults.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from core.formats.model_file import ModelFile
from core.model.stages import STAGES, stage_named
from core.quant.quantize import QUANTISERS
from core.quant.types import QUANTS, row_bytes
from core.quant.weight import Weight
from core.system.errors import UsageError

PLANTED_KEY = "apr_tui.planted"  # in the metadata: the fault, as it was asked for
# stage -> the tensor whose bytes are touched
TENSORS = {s.name: s.weights[0] for s in STAGES if s.operation == "linear" and s.weights and not s.whole}

Change = Callable[[ModelFile, str, str], list[Weight]]  # model, "blk.L.", the tensor -> the weights that changed


@dataclass(frozen=True, slots=True)
class ByteFault:
    """One kind of bug: the stages where it can stand (none: the whole file), what it is, and how it is made."""

    stages: tuple[str, ...]
    description: str
    change: Change


def plant_byte_fault(model: ModelFile, fault: str) -> ModelFile:
    """Return the model with KIND@LAYER.STAGE planted, and marked; UsageError shows the table."""
    kind, at, where = fault.partition("@")
    layer, _, stage = where.partition(".")
    if kind not in BYTE_FAULTS or (stage not in BYTE_FAULTS[kind].stages if BYTE_FAULTS[kind].stages else at):
        raise UsageError(f"--fault {fault}: there is no such fault. Write one of:\n{byte_fault_table()}")
    marked = {**model.keys, PLANTED_KEY: fault}
    if not at:
        return replace(model, keys={**marked, "apr.rope_type": 0})
    n_layer = model.key(f"{model.key('general.architecture')}.block_count")
    if not (layer.isascii() and layer.isdecimal()) or int(layer) >= n_layer:
        raise UsageError(f"--fault {fault}: {layer!r} is not a layer; the demonstration has layers 0 to {n_layer - 1}.")
    changed = BYTE_FAULTS[kind].change(model, f"blk.{int(layer)}.", TENSORS[stage])
    return replace(model, keys=marked, weights={**model.weights, **{weight.name: weight for weight in changed}})


def byte_fault_table() -> str:
    """List the faults, a line each."""
    return "\n".join(
        f"  {kind}{'@LAYER.' if fault.stages else ''}{'|'.join(fault.stages)}: {fault.description}"
        for kind, fault in BYTE_FAULTS.items()
    )


def _no_bias(model: ModelFile, prefix: str, name: str) -> list[Weight]:
    biases = [model.weight(f"{prefix}{each}.bias") for each in stage_named("qkv").weights]
    return [replace(bias, data=np.zeros_like(bias.data)) for bias in biases]


def _transpose(model: ModelFile, prefix: str, name: str) -> list[Weight]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weight = model.weight(f"{prefix}{name}.weight")
    rows = np.array(weight.data).reshape(-1, row_bytes(QUANTS[weight.quant], weight.shape[-1]))
    values = dequantize(rows, GGMLQuantizationType[weight.quant])
    assert values.shape[0] == values.shape[1], f"{weight.name} is not square"
    return [replace(weight, data=QUANTISERS[weight.quant](values.T).reshape(-1))]


def _times(factor: float) -> Change:
    """Multiply the scale of block 0 of row 0."""
    def change(model: ModelFile, prefix: str, name: str) -> list[Weight]:
        weight = model.weight(f"{prefix}{name}.weight")
        data, at = np.array(weight.data), QUANTS[weight.quant].scales_at[0]
        data[at:at + 2] = (data[at:at + 2].view("<f2") * np.float16(factor)).view(np.uint8)
        return [replace(weight, data=data)]

    return change


def _swap_heads(model: ModelFile, prefix: str, name: str) -> list[Weight]:
    n_head = model.key(f"{model.key('general.architecture')}.attention.head_count")
    order = [1, 0, *range(2, n_head)]
    both = [model.weight(f"{prefix}{name}.{part}") for part in ("weight", "bias")]
    return [replace(weight, data=weight.data.reshape(n_head, -1)[order].reshape(-1)) for weight in both]


def _nothing(model: ModelFile, prefix: str, name: str) -> list[Weight]:
    return []


BYTE_FAULTS = {
    "no-bias": ByteFault(("qkv",), "the biases of q, k and v are 0", _no_bias),
    "transpose": ByteFault(("attn_out",), "the output projection's columns are its rows", _transpose),
    "scale64": ByteFault(tuple(TENSORS), "the scale of block 0 of row 0 (of q for qkv) times 64", _times(64)),
    "swap-heads": ByteFault(("qkv",), "query heads 0 and 1 exchanged, weight and bias", _swap_heads),
    "nan": ByteFault(tuple(TENSORS), "the scale of block 0 of row 0 (of q for qkv) is NaN", _times(float("nan"))),
    "rope-pairing": ByteFault((), "the metadata names the other RoPE pairing", _nothing),
}
