"""Call the compiled kernels on float32 tensors: products with a stored weight, statistics. It chooses no path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from core.kernels.cpu.build import Library
from core.quant.grids import grid_points
from core.quant.types import FUSED, QUANTS, row_bytes
from core.quant.weight import Weight
from core.system.arrays import Rows
from core.system.mapped_file import drop_pages

KINDS = ("f32", "q8_k", "bf16", "q8_0")  # of a product: how x is rounded first, in the order of Compute in rounding.h
UNKNOWN, NO_GRID = 2, 3  # of multiply and decode: no such type; its grid has not been handed over
OTHER_ROW = 2  # of measure: its records are of another size
CALL_MACS = 1 << 33  # multiplications in one call, 60 ms on two cores: how often a run can be cancelled
LET_GO_TOKENS = 64  # from here on mapping a weight's pages again is lost beside multiplying by it
LET_GO_DOWN = 2  # pages of the down projections, a quarter of a file, are dropped for any prompt: 1 % of its time


def is_fused(weight: Weight, x: Tensor) -> bool:
    """Say whether the kernels serve this product."""
    return weight.quant in FUSED and x.dtype == torch.float32 and x.device.type == "cpu"


def multiply_fused(
    kernels: Library, weight: Weight, x: Tensor, cancelled: Callable[[], None], kind: str = "f32"
) -> Tensor:
    """Return x W^T [T, rows]; a token's values do not depend on the other tokens, nor on the number of threads.

    kind: of KINDS. q8_k and q8_0 round x as ggml does (blocks of 256, of 32); bf16 rounds x, the weights and the
    product.
    """
    return multiply_joined_fused(kernels, (weight,), x, cancelled, kind)


def multiply_joined_fused(
    kernels: Library, weights: Sequence[Weight], x: Tensor, cancelled: Callable[[], None], kind: str = "f32"
) -> Tensor:
    """Return the products by several weights side by side [T, all rows], to the bits of multiply_fused."""
    x, n_token = x.contiguous(), x.shape[0]  # len() of a tensor takes a hundredth of a small product
    width = sum([weight.shape[0] for weight in weights])
    out = x.new_empty(n_token, width)
    begin, threads, code = out.data_ptr(), torch.get_num_threads(), KINDS.index(kind)
    for weight in weights:
        (rows, cols), size = weight.shape, row_bytes(QUANTS[weight.quant], weight.shape[1])
        assert weight.data.size >= rows * size and weight.data.flags.c_contiguous, weight.name
        packed, step = weight.data.ctypes.data, max(64, CALL_MACS // (cols * max(1, n_token)) // 64 * 64)
        for start in range(0, rows, step):
            cancelled()
            failed = _call(
                kernels, kernels.multiply, weight.quant, code, packed + start * size, min(step, rows - start), cols,
                x.data_ptr(), n_token, cols, begin + 4 * start, width, threads)
            if failed:
                raise MemoryError(f"no memory for {n_token} x {cols} activations")
        begin += 4 * rows
        if n_token >= (LET_GO_TOKENS if rows >= cols else LET_GO_DOWN):
            drop_pages(weight.data)
    return out


def multiply_experts_fused(
    kernels: Library, weight: Weight, x: Tensor, experts: Tensor, cancelled: Callable[[], None], kind: str = "f32"
) -> Tensor:
    """Return x W_e^T [N, rows] of a weight [E, rows, cols], each row of x by its own expert e: bits of multiply_fused.

    Experts that nobody chose are not read.
    """
    (_, rows, cols), x, n_row = weight.shape, x.contiguous(), x.shape[0]
    at_N = np.argsort(experts.numpy(), kind="stable")
    ids_E, counts_E = np.unique(experts.numpy(), return_counts=True)
    from_E = np.append(0, counts_E.cumsum())
    out = x.new_empty(n_row, rows)
    assert weight.data.flags.c_contiguous and len(experts) == n_row, weight.name
    step = max(1, CALL_MACS * len(ids_E) // (rows * cols * max(1, n_row)))
    for start in range(0, len(ids_E), step):
        cancelled()
        ids, ends = ids_E[start:start + step], from_E[start:start + step + 1]
        failed = _call(
            kernels, kernels.multiply_experts, weight.quant, KINDS.index(kind), weight.data.ctypes.data, rows, cols,
            x.data_ptr(), at_N.ctypes.data, ids.ctypes.data, ends.ctypes.data, len(ids), out.data_ptr(),
            torch.get_num_threads())
        if failed:
            raise MemoryError(f"no memory for {n_row} x {cols} activations")
    if n_row >= LET_GO_TOKENS * len(ids_E):
        drop_pages(weight.data)
    return out


def decode_fused(kernels: Library, weight: Weight, start: int, stop: int, out: Tensor) -> Tensor:
    """Decode rows start..stop of a weight [..., cols] into out [stop - start, cols], with dequantize.py's bits."""
    cols = weight.shape[-1]
    size = row_bytes(QUANTS[weight.quant], cols)
    assert weight.data.size >= stop * size and weight.data.flags.c_contiguous and out.is_contiguous(), weight.name
    failed = _call(kernels, kernels.decode, weight.quant, weight.data.ctypes.data + start * size, stop - start, cols,
                   out.data_ptr(), torch.get_num_threads())
    if failed:
        raise MemoryError(f"no memory to decode {stop - start} x {cols} weights")
    return out


def _call(kernels: Library, function: Callable[..., int], quant: str, *arguments: int) -> int:
    """Call multiply or decode; a type's grid is handed over where they ask for it."""
    failed = function(quant.encode(), *arguments)
    if failed == NO_GRID:
        points = grid_points(quant)
        assert points is not None, f"gguf-py has no grid for {quant}"
        taken = kernels.take_grid(quant.encode(), np.ascontiguousarray(points).ctypes.data, points.size)
        assert not taken, f"grid_blocks.h has no room for {points.shape}"
        failed = function(quant.encode(), *arguments)
    assert failed != UNKNOWN, f"blocks/table.h has no {quant}"
    return failed


def is_measured(x_TW: Tensor) -> bool:
    """Say whether the kernels serve these statistics."""
    return x_TW.dtype == torch.float32 and x_TW.is_cpu and x_TW.ndim == 2 and x_TW.numel() > 0


def measure_fused(
    kernels: Library, values: Sequence[Tensor], factors: Sequence[Sequence[Tensor]], row: np.dtype[np.void],
    peak: np.dtype[np.void], massive: tuple[float, float],
) -> tuple[Rows, Rows]:
    """Take the statistics of values of equally many tokens, in one call: a call costs more than small values do.

    factors: for each value the two whose product it is, or none. row, peak: struct Row and struct Peaks of
    statistics.cpp. massive: the size of a massive value, alone and in multiples of the median. Returns rows [stages, T]
    and peaks [stages].
    """
    values = [x_TW.contiguous() for x_TW in values]
    factors = [[x_TW.contiguous() for x_TW in pair] for pair in factors]
    n_stage, n_token = len(values), values[0].shape[0]
    addresses = [[y.data_ptr() for y in pair] or (0, 0) for pair in factors]
    table = np.array([(x.data_ptr(), *x.shape, *pair) for x, pair in zip(values, addresses, strict=True)], np.int64)
    assert (table[:, 1] == n_token).all()
    rows, peaks = np.empty((n_stage, n_token), row), np.zeros(n_stage, peak)
    failed = kernels.measure(
        table.ctypes.data, n_stage, rows.ctypes.data, row.itemsize, peaks.ctypes.data, peak.itemsize,
        *massive, torch.get_num_threads())
    assert failed != OTHER_ROW, "struct Row or struct Peaks of statistics.cpp has other columns"
    if failed:
        raise MemoryError(f"no memory to measure {sum(x.numel() for x in values)} values")
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


def correlate(
    kernels: Library, left_TW: Tensor, right_TW: Tensor, row: int, channel: int
) -> tuple[float, float, float, float, float] | None:
    """Return left and right at a channel of a row, then the sums of a * b, a * a, b * b over the row, less its means.

    They are added as numpy adds them. None: not all values are finite.
    """
    room = np.empty(5)
    width, lines = left_TW.shape[1], [x.contiguous() for x in (left_TW, right_TW)]
    left, right = (x.data_ptr() + 4 * width * row for x in lines)
    done = kernels.correlate(left, right, width, channel, room.ctypes.data)
    a, b, ab, aa, bb = room.tolist()
    return (a, b, ab, aa, bb) if done else None
