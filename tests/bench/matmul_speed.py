"""Time the fused product of each level beside decode-then-multiply and a plain float32 product, in one run.

python -m tests.bench.matmul_speed [--shapes 8960x1536,...] [--tokens 1,7,...] [--quants Q4_K,Q6_K] [--threads 2]
A line a case: thousand millions of weights a second, GFLOP/s, and NMSE against float64. They take turns; the best of
several counts, since other work on the machine only ever adds. It judges nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from core.kernels.cpu.bindings import multiply_fused
from core.kernels.cpu.build import load
from core.kernels.cpu.instruction_sets import usable_levels
from core.model.matmul import Ask, multiply
from core.quant.dequantize import decode_weight
from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight
from tests.support.random_weights import SCALES

REPEATS, SECONDS = 15, 2.0  # of one case: at most


def random_weight(quant: str, rows: int, cols: int) -> Weight:
    """Random weights with scales of ordinary size."""
    rng, row = np.random.default_rng(0), QUANTS[quant]
    raw = rng.integers(0, 256, tensor_bytes(row, (rows, cols)), dtype=np.uint8)
    blocks = raw.reshape(-1, row.block_bytes)
    for at in SCALES.get(quant, ()):
        blocks[:, at:at + 2] = (1e-4 * (rng.random((len(blocks), 1)) + 0.5)).astype("<f2").view(np.uint8)
    return Weight(f"{quant} {rows} x {cols}", quant, (rows, cols), raw)


def best_seconds(ways: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """The fastest call of each way; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    started = time.perf_counter()
    for _ in range(REPEATS):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() - started > SECONDS * len(ways):
            break
    return best


def compare(weight: Weight, tokens: int) -> None:
    """Print the lines of one weight and one number of tokens."""
    rows, cols = weight.shape
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(1))
    full = decode_weight(weight)
    want = x.double() @ full.double().T
    ways: dict[str, Callable[[], torch.Tensor]] = {
        f"fused {level.name}": lambda level=level: multiply_fused(load(level, "bench"), weight, x, lambda: None)
        for level in usable_levels()}
    ways["decode-then-multiply"] = lambda: multiply(weight, [Ask(x, "f32", plain=True)], lambda: None)[0]
    ways["torch, decoded before"] = lambda: x @ full.T
    error = {name: float(((work() - want) ** 2).sum() / (want**2).sum()) for name, work in ways.items()}
    for name, seconds in best_seconds(ways).items():
        rate = rows * cols / seconds / 1e9
        print(f"{weight.name:18} {tokens:4} tokens  {name:22} {seconds * 1e3:8.2f} ms {rate:6.2f} G weights/s "
              f"{2 * rate * tokens:6.0f} GFLOP/s  NMSE {error[name]:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8960x1536,18944x3584")
    parser.add_argument("--tokens", default="1,7,32,128,512")
    parser.add_argument("--quants", default="Q4_K,Q6_K")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for quant in args.quants.split(","):
        for shape in args.shapes.split(","):
            rows, cols = (int(n) for n in shape.split("x"))
            weight = random_weight(quant, rows, cols)
            for tokens in args.tokens.split(","):
                compare(weight, int(tokens))


if __name__ == "__main__":
    main()
