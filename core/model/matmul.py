"""Multiply by a stored weight at the declared compute, on the fused path or by decode-then-multiply.

Fused (float32 values on the CPU): the compiled kernels of kernels/. Else: decode a few rows at a time, then multiply.
Not here: the decoders (quant/dequantize.py), how activations are rounded (quant/activations.py), the forward that
asks (forward.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from core.kernels.cpu.bindings import is_fused, multiply_fused
from core.kernels.cpu.build import FUSED, Absent, Library, library
from core.kernels.gpu.planes import LAYOUTS
from core.model.gpu_weights import Resident, why_no_kernels
from core.quant.activations import K_BLOCK, round_activations
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight

CHUNK_WEIGHTS = 1 << 20  # decoded at a time on the CPU: 4 MiB of float32, so that they are multiplied from the cache
DECODED, RESIDENT = "", "resident"  # kinds of products beside those of the compiled kernels
ROUNDED_INSIDE = ("q8_k", "bf16")  # kinds of fused products that round the activations themselves


def kernel_path(compute: str, device: torch.device) -> str:
    """Name the kernel path and say why it was chosen; the first call compiles the kernels where they are not yet."""
    missing = why_no_kernels(device)
    if missing is None:
        how = "one token: 24-bit whole numbers by groups of 256, exact sums; more: three bfloat16 parts, float32 sums"
        from core.kernels.gpu.products import VERSION

        return (f"Triton {VERSION} {compute}, no TF32, weights quantised on the device ({how}) for "
                f"{' '.join(LAYOUTS)}; other types decode-then-multiply")
    if device.type == "cuda":
        return f"decode-then-multiply {compute}, whole tensors ({missing})"
    steps = f"decode-then-multiply {compute}, {CHUNK_WEIGHTS} weights at a time"
    kernels = library()
    if isinstance(kernels, Absent):
        return f"{steps} ({kernels.reason})"
    level = kernels.level
    says = {"f32": level.says, "q8": level.says_q8, "bf16": level.says_bf16}[compute]
    return f"fused {level.name} ({says}; {kernels.reason}) for {' '.join(FUSED)}; other types {steps}"


def multiply(
    weight: Weight, asks: Sequence[tuple[Tensor, str]], cancelled: Callable[[], None], plain: Sequence[bool] = (),
    resident: Resident | None = None,
) -> list[Tensor]:
    """Return x W^T [T, rows] for each (x [T, cols], compute); every row of W is decoded once for all asks of a path.

    cancelled: called between chunks; it raises to end the run. plain: for each ask, whether it goes without kernels.
    resident: the weights on their GPU, where each ask has a launch of its own, so that its bits are its own.
    """
    kernels = library() if resident is None and any(is_fused(weight, x) for x, _ in asks) else None
    kinds = [DECODED if plain and plain[i] else _kind(weight, x, compute, kernels, resident)
             for i, (x, compute) in enumerate(asks)]
    inputs = [x if kind in ROUNDED_INSIDE else round_activations(x, compute, weight.quant)
              for (x, compute), kind in zip(asks, kinds, strict=True)]
    parts: dict[int, Tensor] = {}
    for kind in dict.fromkeys(kinds):
        same = [i for i, other in enumerate(kinds) if other == kind]
        if kind == RESIDENT and resident is not None:
            parts |= {i: resident.multiply(weight, inputs[i]) for i in same}
        elif kind == DECODED or not isinstance(kernels, Library):
            parts |= zip(same, _decode_multiply(
                weight, [inputs[i] for i in same], [asks[i][0].dtype for i in same], cancelled), strict=True)
        else:
            x = inputs[same[0]] if len(same) == 1 else torch.cat([inputs[i] for i in same])
            products = multiply_fused(kernels, weight, x, cancelled, kind)
            ends = list(accumulate(len(inputs[i]) for i in same))
            parts |= {i: products[end - len(inputs[i]):end] for i, end in zip(same, ends, strict=True)}
    return [parts[i] for i in range(len(inputs))]


def _kind(
    weight: Weight, x: Tensor, compute: str, kernels: Library | Absent | None, resident: Resident | None
) -> str:
    """Name what serves a product: DECODED, RESIDENT, or one of the compiled kernels' kinds."""
    if resident is not None:
        return RESIDENT if resident.serves(weight, x) else DECODED
    if not isinstance(kernels, Library) or not is_fused(weight, x):
        return DECODED
    if compute == "q8" and weight.quant.endswith("_K") and weight.shape[1] % K_BLOCK == 0:
        return "q8_k"
    return "bf16" if compute == "bf16" else "f32"  # f32 takes values that have been rounded before


def _decode_multiply(
    weight: Weight, inputs: Sequence[Tensor], dtypes: Sequence[torch.dtype], cancelled: Callable[[], None]
) -> list[Tensor]:
    rows, cols = weight.shape
    device = inputs[0].device
    step = max(1, CHUNK_WEIGHTS // cols) if device.type == "cpu" else rows
    outs = [x.new_empty(x.shape[0], rows, dtype=dtype) for x, dtype in zip(inputs, dtypes, strict=True)]
    scratch = torch.empty((min(step, rows), cols), device=device)
    for start in range(0, rows, step):
        cancelled()
        stop = min(start + step, rows)
        w = decode_rows(weight, start, stop, device, out=scratch[: stop - start])
        for out, x in zip(outs, inputs, strict=True):
            out[:, start:stop] = x @ w.to(x.dtype).T
    return outs
