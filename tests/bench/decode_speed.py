"""Measure how fast weights are decoded: decode_speed.py [THREADS]: compiled, by torch, by gguf-py, in one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gguf
import numpy as np
import torch

from core.kernels.cpu import decoding
from core.quant.dequantize import DECODERS, decode_rows
from core.quant.types import FUSED, QUANTS, tensor_bytes
from core.quant.weight import Weight

ROWS, COLS = 2240, 1536  # a quarter of a feed-forward matrix of a 1.5B model


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest call: other work on the machine only ever adds."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compiled_rates(threads: int) -> dict[str, float]:
    """Million weights a second into one buffer by the compiled decoders, of each type that has one."""
    torch.set_num_threads(threads)
    out, rates = torch.empty(ROWS, COLS), {}
    for name in FUSED:
        raw = np.random.default_rng(0).integers(0, 256, tensor_bytes(QUANTS[name], (ROWS, COLS)), dtype=np.uint8)
        weight = Weight("w", name, (ROWS, COLS), raw)
        rates[name] = ROWS * COLS / 1e6 / best_of(7, lambda w=weight: decoding.decode_rows(w, 0, ROWS, out=out))
    return rates


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    out = torch.empty(ROWS, COLS)
    print("million weights a second into one buffer: compiled, torch (- where it has no decoder), gguf-py")
    for name in FUSED:
        raw = np.random.default_rng(0).integers(0, 256, tensor_bytes(QUANTS[name], (ROWS, COLS)), dtype=np.uint8)
        weight, kind = Weight("w", name, (ROWS, COLS), raw), gguf.GGMLQuantizationType[name]
        with np.errstate(all="ignore"):
            seconds = (
                best_of(7, lambda weight=weight: decoding.decode_rows(weight, 0, ROWS, out=out)),
                best_of(3, lambda weight=weight: decode_rows(weight, 0, ROWS, out=out)) if name in DECODERS else None,
                best_of(1, lambda raw=raw, kind=kind: gguf.quants.dequantize(raw.reshape(ROWS, -1), kind).copy()),
            )
        print(f"{name:8}", *(f"{ROWS * COLS / each / 1e6:8.0f}" if each else f"{'-':>8}" for each in seconds))


if __name__ == "__main__":
    main()
