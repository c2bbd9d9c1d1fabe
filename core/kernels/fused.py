"""Call the compiled kernels on float32 tensors: products with a stored weight, statistics. It chooses no path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.file_map import let_go
from core.kernels.library import FUSED, Library
from core.model_file import Weight
from core.quants import QUANTS, row_bytes

# of TokenStats, in its order and that of statistics.cpp
COLUMNS = ("mean", "m2", "min", "max", "sumsq", "nan", "inf", "zero", "peak_channel", "nan_channel")
N_REAL = 5  # of them are float64, the others whole numbers
KINDS = ("f32", "q8_k", "bf16")  # of a product: how x is rounded first, in the order of Compute in rounding.h
Peak = tuple[int, int, float]  # channel, row, value
TOP_CHANNELS = 8
CALL_MACS = 1 << 33  # multiplications in one call, 60 ms on two cores: how often a run can be cancelled
LET_GO_TOKENS = 64  # from here on mapping a weight's pages again is lost beside multiplying by it


def is_fused(weight: Weight, x: Tensor) -> bool:
    """Say whether the kernels serve this product."""
    return weight.quant in FUSED and x.dtype == torch.float32 and x.device.type == "cpu" and len(weight.shape) == 2


def multiply_fused(
    kernels: Library, weight: Weight, x: Tensor, cancelled: Callable[[], None], kind: str = "f32"
) -> Tensor:
    """Return x W^T [T, rows]; a token's values do not depend on the other tokens, nor on the number of threads.

    kind: of KINDS. q8_k rounds x as ggml does (blocks of 256); bf16 rounds x, the weights and the product.
    """
    (rows, cols), size = weight.shape, row_bytes(QUANTS[weight.quant], weight.shape[1])
    x = x.contiguous()
    out = x.new_empty(x.shape[0], rows)
    assert weight.data.size >= rows * size and weight.data.flags.c_contiguous, weight.name
    step = max(64, CALL_MACS // (cols * max(1, len(x))) // 64 * 64)
    for start in range(0, rows, step):
        cancelled()
        failed = kernels.multiply(
            FUSED.index(weight.quant), KINDS.index(kind), weight.data.ctypes.data + start * size,
            min(step, rows - start), cols, x.data_ptr(), len(x), cols, out.data_ptr() + 4 * start, rows,
            torch.get_num_threads())
        if failed:
            raise MemoryError(f"no memory for {x.shape[0]} x {cols} activations")
    if len(x) >= LET_GO_TOKENS:
        let_go(weight.data)
    return out


def is_measured(x_TW: Tensor) -> bool:
    """Say whether the kernels serve these statistics."""
    return x_TW.dtype == torch.float32 and x_TW.device.type == "cpu" and x_TW.ndim == 2 and x_TW.numel() > 0


def measure_fused(kernels: Library, x_TW: Tensor) -> tuple[list[np.ndarray[Any, Any]], list[Peak]]:
    """Return the columns of COLUMNS, a value a token, and the peaks of the 8 channels that have the largest."""
    x_TW = x_TW.contiguous()
    n_token, width = x_TW.shape
    room = np.empty(10 * n_token + 3 * TOP_CHANNELS)  # one block for all: a call takes microseconds, and is made often
    n_top = kernels.measure(x_TW.data_ptr(), n_token, width, room.ctypes.data, torch.get_num_threads())
    if n_top < 0:
        raise MemoryError(f"no memory to measure {n_token} x {width} values")
    whole, end = room.view(np.int64), 10 * n_token
    rows = [(room if i < N_REAL else whole)[i * n_token:(i + 1) * n_token] for i in range(10)]
    places, values = whole[end:].tolist(), room[-TOP_CHANNELS:].tolist()
    peaks = list(zip(places[:n_top], places[TOP_CHANNELS:TOP_CHANNELS + n_top], values, strict=False))
    return rows, peaks


def find_massive(
    kernels: Library, x_TW: Tensor, least_size: float, multiple: float, most: int
) -> tuple[float, list[tuple[int, int, float]]] | None:
    """Return the median |x| and the largest (row, channel, value) of each channel that is far out; None for none.

    Far out: |x| over least_size and over multiple times the median, in at most `most` channels.
    """
    room = np.empty(1 + 3 * most)
    x_TW = x_TW.contiguous()
    n = kernels.massive(x_TW.data_ptr(), *x_TW.shape, least_size, multiple, most, room.ctypes.data)
    if n < 0:
        raise MemoryError(f"no memory to find the median of {x_TW.numel()} values")
    found = room[1:1 + 3 * n].reshape(n, 3).tolist()
    return (float(room[0]), [(int(t), int(c), v) for t, c, v in found]) if n else None


def correlate(kernels: Library, left: Tensor, right: Tensor) -> tuple[float, float, float] | None:
    """Return the sums of a * b, a * a, b * b of two rows less their means, as numpy adds them; None: not all finite."""
    room = np.empty(3)
    left, right = left.contiguous(), right.contiguous()
    done = kernels.correlate(left.data_ptr(), right.data_ptr(), left.shape[0], room.ctypes.data)
    ab, aa, bb = room.tolist()
    return (ab, aa, bb) if done else None
