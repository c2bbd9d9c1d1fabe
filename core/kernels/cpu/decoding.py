"""Decode stored weights on the CPU by the compiled kernels where they serve, else as quant/dequantize.py does.

The bits are the same on both ways. It multiplies nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.kernels.cpu.bindings import decode_fused
from core.kernels.cpu.build import Library, library
from core.quant import dequantize
from core.quant.types import FUSED
from core.quant.weight import Weight

FEW_WEIGHTS = 1 << 16  # up to here the time is not worth a first build of the kernels


def decode_rows(
    weight: Weight, start: int, stop: int, device: str | torch.device = "cpu", out: Tensor | None = None
) -> Tensor:
    """Decode rows start..stop as dequantize.decode_rows does: shapes, out and errors are its own."""
    cols = weight.shape[-1] if len(weight.shape) > 1 else 0
    few = weight.quant not in FUSED or (stop - start) * cols <= FEW_WEIGHTS
    kernels = None if few or torch.device(device).type != "cpu" else library()
    if not isinstance(kernels, Library):
        return dequantize.decode_rows(weight, start, stop, device, out)
    return decode_fused(kernels, weight, start, stop, torch.empty(stop - start, cols) if out is None else out)
