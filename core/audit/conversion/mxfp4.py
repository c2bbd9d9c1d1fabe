"""Decode the MXFP4 pairs of a safetensors original (name_blocks and name_scales, as gpt-oss is published).

blocks: [.., groups, 16] bytes of two 4-bit floats each, the low one first; scales: [.., groups], exponents with a bias
of 127. Source: the OCP microscaling format, version 1.0, and transformers 5.24 (integrations/mxfp4).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.audit.conversion.steps import DoesNotFit
from core.quant.weight import Weight

BLOCKS, SCALES = "_blocks", "_scales"
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127


def scales_of(name: str) -> str:
    """The name of a pair's scales."""
    return name.removesuffix(BLOCKS) + SCALES


def take_pair(blocks: Weight, scales: Weight | None) -> Tensor:
    """Float32 values [.., groups x 32]; DoesNotFit where the two are no pair."""
    are_bytes = scales is not None and blocks.quant == scales.quant == "U8"
    if scales is None or not are_bytes or blocks.shape[-1:] != (16,) or blocks.shape[:-1] != scales.shape:
        raise DoesNotFit(f"{list(blocks.shape)} blocks have no scales of their shape: no MXFP4 pair")
    packed = torch.from_numpy(np.array(blocks.data)).view(*blocks.shape)
    levels = torch.tensor((*LEVELS, *(-v for v in LEVELS)))
    both = torch.stack((levels[(packed & 15).long()], levels[(packed >> 4).long()]), -1)
    exponents = torch.from_numpy(np.array(scales.data)).view(*scales.shape).int() - BIAS
    values = torch.ldexp(both.flatten(-2), exponents[..., None])
    return values.flatten(-2)
