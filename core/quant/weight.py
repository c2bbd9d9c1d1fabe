"""Record of one stored tensor: its name, quant type, shape and bytes. dequantize.py makes numbers of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.system.arrays import Bytes


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a file, as its bytes.

    shape: (rows, cols), so that y[rows] = W x[cols]; (n,) for a vector. A reader reverses the file's own order.
    data: uint8, a flat view into the memory map; rows stand one after the other, each padded to whole blocks.
    """

    name: str   # GGUF's: blk.3.ffn_gate.weight
    quant: str  # a row of QUANTS: Q4_K
    shape: tuple[int, ...]
    data: Bytes = field(repr=False)
