"""RoPE's tables that a converter writes as tensors: Llama 3's factors, and Phi's long and short ones.

Source: transformers 5.24, modeling_rope_utils (_compute_llama3_parameters, _compute_longrope_parameters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.audit.conversion.sizes import Sizes
from core.system.json_text import number

MAX_CHANNELS = 1 << 16


def rope_tables(sizes: Sizes, arch: str) -> Mapping[str, Tensor]:
    """Tensor name -> factors by which RoPE's wavelengths are stretched; empty where the configuration asks for none."""
    rope = sizes.config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    kind = rope.get("rope_type", rope.get("type"))
    try:
        if kind == "llama3":
            return {"rope_freqs.weight": _llama3(sizes, rope)}
        if kind in ("longrope", "su"):
            return {f"rope_factors_{name}.weight": torch.tensor([float(v) for v in rope[f"{name}_factor"]])
                    for name in ("long", "short")}
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return {}
    return {}


def _llama3(sizes: Sizes, rope: Mapping[str, Any]) -> Tensor:
    base = number(rope.get("rope_theta", sizes.config.get("rope_theta", 10000.0))) or 10000.0
    factor, low, high, length = (float(rope[k]) for k in (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    dim = min(sizes.head_dim, MAX_CHANNELS)
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * base ** (i / dim)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)
