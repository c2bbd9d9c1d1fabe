"""Random weights and activations for the kernels, and how near a float32 product comes to float64's."""

from __future__ import annotations

import numpy as np
import torch

from core.quant.types import FUSED, QUANTS, tensor_bytes
from core.quant.weight import Weight

SCALES = {quant: QUANTS[quant].scales_at for quant in FUSED if QUANTS[quant].scales_at}
FLOAT32_NMSE = 1e-12  # a float32 dot product of K = 1000s against float64: 2^-24 a step, squared, times some tens


# the byte of a scale that is no float16, its bits that stay random, those that give it an ordinary size
TAME = {"MXFP4": (0, 0x07, 0x78), "IQ1_M": (55, 0x0F, 0x30)}


def random_weight(quant: str, rows: int, cols: int, seed: int = 0) -> Weight:
    """Random finite weights of a type; a padded row has random values beyond cols."""
    rng, row = np.random.default_rng(seed), QUANTS[quant]
    raw = rng.integers(0, 256, tensor_bytes(row, (rows, cols)), dtype=np.uint8)
    if not row.is_plain:
        blocks = raw.reshape(-1, row.block_bytes)
        for at in SCALES.get(quant, ()):
            blocks[:, at:at + 2] = (rng.random((len(blocks), 1)) + 0.1).astype("<f2").view(np.uint8)
        if quant in TAME:
            at, stays, size = TAME[quant]
            blocks[:, at] = blocks[:, at] & stays | size
    else:
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        kinds = {"F32": values, "F16": values.astype("<f2"), "BF16": (values.view(np.uint32) >> 16).astype("<u2")}
        raw = kinds[quant].reshape(-1).view(np.uint8).copy()
    return Weight(quant.lower(), quant, (rows, cols), raw)


def random_x(tokens: int, cols: int, seed: int = 1) -> torch.Tensor:
    """Normal activations [tokens, cols]."""
    return torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))
