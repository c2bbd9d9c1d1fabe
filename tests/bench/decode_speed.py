"""Measure how fast weights are decoded, ours beside gguf-py's in one run: decode_speed.py [THREADS]."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gguf
import numpy as np
import torch

from core.quant.dequantize import decode_rows
from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight

ROWS, COLS = 8960, 1536  # a feed-forward matrix of a 1.5B model
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest call: other work on the machine only ever adds."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    out = torch.empty(ROWS, COLS)
    print("million weights a second: ours into one buffer, ours into new memory, gguf-py")
    for name in TYPES:
        raw = np.random.default_rng(0).integers(0, 256, tensor_bytes(QUANTS[name], (ROWS, COLS)), dtype=np.uint8)
        weight, kind = Weight("w", name, (ROWS, COLS), raw), gguf.GGMLQuantizationType[name]
        with np.errstate(all="ignore"):
            seconds = (
                best_of(7, lambda weight=weight: decode_rows(weight, 0, ROWS, out=out)),
                best_of(3, lambda weight=weight: decode_rows(weight, 0, ROWS)),
                best_of(2, lambda raw=raw, kind=kind: gguf.quants.dequantize(raw.reshape(ROWS, -1), kind).copy()),
            )
        print(f"{name:6}", *(f"{ROWS * COLS / each / 1e6:8.0f}" for each in seconds))


if __name__ == "__main__":
    main()
