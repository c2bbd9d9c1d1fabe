"""Make an original that lies on no quantised grid: python -m tests.bench.dither QUANTISED.gguf ORIGINAL.gguf.

A file that was quantised once is no fair original: its values are levels, which another type may hit exactly (Q4_1's by
Q4_K) or not at all. Each weight of a layer gets uniform noise as wide as its own step, which is where a weight that was
rounded to it may have been, and is stored as float16. The model is as far from its maker's as the quantised one is.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader

from core.damage.exact import BLOCK
from core.damage.steps import GROUP, rounding_variance
from core.formats.open_model import open_model
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight
from tests.bench.damage import quantise


def main() -> None:
    """Write the original."""
    source, path = map(Path, sys.argv[1:])
    quantise(source, path, "F16")
    file = open_model(source)
    data = np.memmap(path, dtype=np.uint8, mode="r+")
    for part in GGUFReader(path).tensors:
        if BLOCK.match(part.name) and len(part.shape) == 2:
            stored = dithered(file.weight(part.name)).numpy().astype(np.float16).view(np.uint8).reshape(-1)
            data[part.data_offset:part.data_offset + stored.size] = stored
    data.flush()


def dithered(weight: Weight) -> torch.Tensor:
    """The weight's values with noise as wide as their steps; the same for the same name."""
    rows, cols = weight.shape
    steps = (12 * rounding_variance(weight, 0, rows)).sqrt().repeat_interleave(GROUP, 1)[:, :cols]
    generator = torch.Generator().manual_seed(zlib.crc32(weight.name.encode()))
    return decode_rows(weight, 0, rows) + (torch.rand(rows, cols, generator=generator) - 0.5) * steps


if __name__ == "__main__":
    main()
