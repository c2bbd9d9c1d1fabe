"""Round activations as a declared compute does before they are multiplied by a weight. It multiplies nothing."""

from __future__ import annotations

import torch
from torch import Tensor

K_BLOCK, SMALL_BLOCK = 256, 32
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # weights whose activations ggml rounds to their own type
# compute -> (what is said of it, rounding unit of an activation)
COMPUTES = {
    "f32": ("float32 activations on exactly dequantised weights", 2.0**-23),
    "q8": ("activations rounded as ggml does: Q8_K for K-quants, Q8_0 for other quants, F16 for F16, BF16 for BF16",
           2.0**-8),
    "bf16": ("activations and weights in bfloat16, sums in float32", 2.0**-8),
}


def bf16(x: Tensor) -> Tensor:
    """Round to bfloat16."""
    return x.to(torch.bfloat16)


def q8_k(x: Tensor) -> Tensor:
    """Round as ggml's Q8_K does: blocks of 256, -127 for the value of largest size. A NaN makes its whole block NaN.

    Source: ggml, quantize_row_q8_K_ref (which makes 0 of a NaN: here a NaN must not vanish).
    """
    blocks = x.reshape(-1, K_BLOCK)
    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    inverse = torch.where(peak == 0, 0.0, torch.full_like(peak, -127.0) / peak)  # -127.0 / peak rounds twice
    q = (inverse * blocks).round().clamp(max=127)
    return torch.where((inverse == 0) & ~peak.isinf() | inverse.isinf(), 0.0, q * (1 / inverse)).reshape(x.shape)


def q8_0(x: Tensor) -> Tensor:
    """Round as ggml's Q8_0 does: blocks of 32, scale = largest size / 127, kept in float16.

    Source: ggml, quantize_row_q8_0 of x86 (127 / largest size, ties to even; its reference has 1 / scale, ties away).
    """
    blocks = x.reshape(-1, SMALL_BLOCK)
    peak = blocks.abs().amax(1, keepdim=True)
    inverse = torch.full_like(peak, 127.0) / peak
    q = torch.where(inverse.isinf(), 0.0, (blocks * inverse).round())
    return (q * (peak / 127).half().to(x.dtype)).reshape(x.shape)


def round_activations(x: Tensor, compute: str, quant: str) -> Tensor:
    """Round x [..., cols] as the compute does for a weight of that quant type; f32 leaves it as it is."""
    if compute == "bf16":
        return bf16(x)
    if compute == "q8" and quant in HALVES:
        return x.to(HALVES[quant]).to(x.dtype)
    if compute == "q8" and quant != "F32":
        wide = quant.endswith("_K") and x.shape[-1] % K_BLOCK == 0
        return q8_k(x) if wide else q8_0(x) if x.shape[-1] % SMALL_BLOCK == 0 else x
    return x
