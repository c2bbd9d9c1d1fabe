"""Round activations as a declared compute does before they are multiplied by a weight. It multiplies nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.quant.types import QUANTS, Quant

K_BLOCK, SMALL_BLOCK = 256, 32
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Compute:
    """A way to multiply that a run declares.

    rounds: the activations x [..., cols] as they meet a weight of that type. unit: the relative rounding of one.
    kept: the type that every stage's value is rounded to, the residual stream too, and each factor and result of a
    product; None where stages stay as they are. cpu_only: no GPU path computes so.
    """

    name: str
    description: str
    unit: float
    rounds: Callable[[Tensor, Quant], Tensor]
    kept: torch.dtype | None = None
    cpu_only: bool = False

    def keep(self, x: Tensor) -> Tensor:
        """Round x to the type that stages are kept in, in its own float type; Inf where that type overflows."""
        return x if self.kept is None else x.to(self.kept).to(x.dtype)


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


def q8_kind(quant: Quant, cols: int) -> str:
    """Return which of q8_k and q8_0 rounds activations of that many columns under q8; "" for neither."""
    if quant.rounds in (*HALVES, "F32"):
        return ""
    return "q8_k" if quant.rounds == "Q8_K" and cols % K_BLOCK == 0 else "q8_0" if cols % SMALL_BLOCK == 0 else ""


def round_activations(x: Tensor, compute: str, quant: str) -> Tensor:
    """Round x [..., cols] as the compute does for a weight of that quant type; f32 leaves it as it is."""
    return COMPUTES[compute].rounds(x, QUANTS[quant])


def _round_q8(x: Tensor, quant: Quant) -> Tensor:
    """Round as ggml does for a weight of that type: to Q8_K, Q8_0, or the weight's own half."""
    if quant.rounds in HALVES:
        return x.to(HALVES[quant.rounds]).to(x.dtype)
    kind = q8_kind(quant, x.shape[-1])
    return q8_k(x) if kind == "q8_k" else q8_0(x) if kind else x


COMPUTES = {compute.name: compute for compute in (
    Compute("f32", "float32 activations on exactly dequantised weights", 2.0**-23, lambda x, _: x),
    Compute("q8", "activations rounded as ggml does: Q8_K for K-quants, Q8_0 for other quants, F16 for F16, "
                  "BF16 for BF16", 2.0**-8, _round_q8),
    Compute("bf16", "activations and weights in bfloat16, sums in float32", 2.0**-8, lambda x, _: bf16(x)),
    Compute("f16", "activations, weights, products and the residual stream in float16, Inf above 65504; sums, norms "
                   "and attention scores in float32", 2.0**-11, lambda x, _: x.half().to(x.dtype),
            kept=torch.float16, cpu_only=True),
)}
