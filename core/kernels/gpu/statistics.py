"""Measure every stage of a layer on a GPU in three launches, copied to the host behind the computation's back.

A program takes one segment of one token's values, in registers, in float64; then one merges a token's segments
(parallel moments), and one finds a stage's largest channels: no sum depends on what else is measured.
Definitions: trace/stats.py. Its caller: trace/gpu_tap.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from core.kernels.cpu.build import TOP_CHANNELS
from core.system.arrays import Floats, Rows

SEGMENT, CANDIDATES = 2048, 1024
# A token's row: these, then 8 channels of the largest |x|, of which peak_channel is the first, and their values.
COLUMNS = ("n", "mean", "m2", "min", "max", "sumsq", "nan", "inf", "zero", "nan_channel", "peak_channel")
WIDTH = len(COLUMNS) - 1 + 2 * TOP_CHANNELS


def launch_statistics(values: Sequence[Tensor]) -> Tensor:
    """Start measuring [T, width] float32 tensors of one T; returns what read_statistics takes, on their device."""
    n_token, device = len(values[0]), values[0].device
    assert all(x.is_contiguous() and len(x) == n_token and x.dtype == torch.float32 for x in values)
    jobs = [(x.data_ptr() + 4 * start, x.shape[1], min(SEGMENT, x.shape[1] - start), start)
            for x in values for start in range(0, x.shape[1], SEGMENT)]
    counts = [-(-x.shape[1] // SEGMENT) for x in values]
    stages = [(first, n, 0, 0) for first, n in zip(accumulate([0, *counts[:-1]]), counts, strict=True)]
    table = torch.tensor([*jobs, *stages], dtype=torch.int64).to(device, non_blocking=True)
    parts = torch.empty((n_token, len(jobs), WIDTH), dtype=torch.float64, device=device)
    out = torch.empty(len(values) * (n_token * WIDTH + 3 * TOP_CHANNELS), dtype=torch.float64, device=device)
    rows, peaks = out[:len(values) * n_token * WIDTH], out[len(values) * n_token * WIDTH:]
    sizes = {"PEAKS": TOP_CHANNELS, "COLUMNS": WIDTH, "num_warps": 4, "enable_fp_fusion": True}
    if n_token:
        _segment[(len(jobs), n_token)](table, parts, SIZE=SEGMENT, **sizes)
        _token[(len(values), n_token)](table[len(jobs):], parts, rows, len(jobs),
                                       JOBS=triton.next_power_of_2(max(counts)), **sizes)
    _channels[(len(values),)](rows, peaks, n_token * TOP_CHANNELS, SIZE=CANDIDATES, **sizes)
    return out


def read_statistics(
    measured: Floats, n_stage: int, row: np.dtype[np.void], peaks: np.dtype[np.void]
) -> tuple[Rows, Rows]:
    """Return what measure_fused does of the same values; its sums stand in another order."""
    last = n_stage * 3 * TOP_CHANNELS
    columns = measured[:-last].reshape(n_stage, -1, WIDTH)
    table = np.empty(columns.shape[:2], row)
    for name in row.names or ():
        table[name] = columns[:, :, COLUMNS.index(name)]
    found, tops = measured[-last:].reshape(n_stage, TOP_CHANNELS, 3), np.zeros(n_stage, peaks)
    has = found[:, :, 0] >= 0  # those of a stage come first
    tops["n"] = has.sum(1)
    for i, name in enumerate(("channel", "row", "value")):
        tops[name] = np.where(has, found[:, :, i], 0)
    return table, tops


@triton.jit
def _segment(table, out, SIZE: tl.constexpr, PEAKS: tl.constexpr, COLUMNS: tl.constexpr):
    job, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = tl.load(table + 4 * job).to(tl.pointer_type(tl.float32))
    step, size, channel = tl.load(table + 4 * job + 1), tl.load(table + 4 * job + 2), tl.load(table + 4 * job + 3)
    at = tl.arange(0, SIZE)
    inside = at < size
    x = tl.load(start + token * step + at, mask=inside, other=0.0)
    nan = inside & (x != x)
    inf = inside & (tl.abs(x) == float("inf"))
    fine = inside & (x == x) & (tl.abs(x) != float("inf"))
    wide = tl.where(fine, x, 0.0).to(tl.float64)
    n = tl.sum(fine.to(tl.int32), 0).to(tl.float64)
    mean = tl.sum(wide, 0) / tl.maximum(n, 1.0)
    gap = tl.where(fine, wide - mean, 0.0)
    row = out + (token * tl.num_programs(0) + job) * COLUMNS
    tl.store(row, n)
    tl.store(row + 1, mean)
    tl.store(row + 2, tl.sum(gap * gap, 0))
    tl.store(row + 3, tl.min(tl.where(fine, x, float("inf")), 0).to(tl.float64))
    tl.store(row + 4, tl.max(tl.where(fine, x, float("-inf")), 0).to(tl.float64))
    tl.store(row + 5, tl.sum(wide * wide, 0))
    tl.store(row + 6, tl.sum(nan.to(tl.int32), 0).to(tl.float64))
    tl.store(row + 7, tl.sum(inf.to(tl.int32), 0).to(tl.float64))
    tl.store(row + 8, tl.sum((inside & (x == 0.0)).to(tl.int32), 0).to(tl.float64))
    first_nan = tl.min(tl.where(nan, at, SIZE), 0)
    tl.store(row + 9, tl.where(first_nan < SIZE, first_nan + channel, -1).to(tl.float64))
    left = tl.where(fine, tl.abs(x), -1.0)
    for i in range(PEAKS):
        peak = tl.max(left, 0)
        where = tl.min(tl.where(left == peak, at, SIZE), 0)
        value = tl.sum(tl.where(at == where, wide, 0.0), 0)
        tl.store(row + 10 + i, tl.where(peak >= 0.0, where + channel, -1).to(tl.float64))
        tl.store(row + 10 + PEAKS + i, value)
        left = tl.where(at == where, -2.0, left)


@triton.jit
def _token(table, parts, out, n_job, JOBS: tl.constexpr, PEAKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Merge the segments of one token of one stage; its row has the columns of a segment's."""
    stage, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, count = tl.load(table + 4 * stage), tl.load(table + 4 * stage + 1)
    part = parts + (token * n_job + first) * COLUMNS
    row = out + (stage * tl.num_programs(1) + token) * COLUMNS
    n, mean, m2 = tl.load(part), tl.load(part + 1), tl.load(part + 2)
    for j in range(1, count):
        more, gap = tl.load(part + j * COLUMNS), tl.load(part + j * COLUMNS + 1) - mean
        total = tl.maximum(n + more, 1.0)
        mean += gap * (more / total)
        m2 += tl.load(part + j * COLUMNS + 2) + gap * gap * (n * more / total)
        n += more
    tl.store(row, n)
    tl.store(row + 1, mean)
    tl.store(row + 2, m2)
    job = tl.arange(0, JOBS)
    at, there = part + job * COLUMNS, job < count
    tl.store(row + 3, tl.min(tl.load(at + 3, mask=there, other=float("inf")), 0))
    tl.store(row + 4, tl.max(tl.load(at + 4, mask=there, other=float("-inf")), 0))
    for column in tl.static_range(5, 9):
        tl.store(row + column, tl.sum(tl.load(at + column, mask=there, other=0.0), 0))
    nan = tl.load(at + 9, mask=there, other=-1.0)
    nan = tl.min(tl.where(nan >= 0.0, nan, float("inf")), 0)
    tl.store(row + 9, tl.where(nan < float("inf"), nan, -1.0))
    each = tl.arange(0, JOBS * PEAKS)
    at, there = part + each // PEAKS * COLUMNS + 10 + each % PEAKS, each < count * PEAKS
    channel = tl.load(at, mask=there, other=-1.0)
    value = tl.load(at + PEAKS, mask=there, other=0.0)
    left = tl.where(channel >= 0.0, tl.abs(value), -1.0)
    for i in range(PEAKS):
        peak = tl.max(left, 0)
        found = tl.min(tl.where(left == peak, channel, float("inf")), 0)
        tl.store(row + 10 + i, tl.where(peak >= 0.0, found, -1.0))
        tl.store(row + 10 + PEAKS + i, tl.sum(tl.where(channel == found, value, 0.0), 0))
        left = tl.where(channel == found, -2.0, left)


@triton.jit
def _channels(rows, peaks, n_candidate, SIZE: tl.constexpr, PEAKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Find the 8 channels of a stage with the largest |x|: channel, token and value; a tie goes to the lowest.

    A channel of the 8 is among the 8 of the token where it peaks, so the tokens' channels hold all of them.
    """
    stage, each, slot = tl.program_id(0), tl.arange(0, SIZE), tl.arange(0, PEAKS)
    base = rows + stage * (n_candidate // PEAKS) * COLUMNS + 10
    taken = tl.full((PEAKS,), -2.0, tl.float64)
    for i in range(PEAKS):
        peak, best = tl.full((), -1.0, tl.float64), tl.full((), float("inf"), tl.float64)
        where, signed = tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float64)
        for start in range(0, n_candidate, SIZE):
            at = start + each
            token, there = at // PEAKS, at < n_candidate
            place = base + token.to(tl.int64) * COLUMNS + at % PEAKS
            channel = tl.load(place, mask=there, other=-1.0)
            value = tl.load(place + PEAKS, mask=there, other=0.0)
            is_free = tl.sum((channel[:, None] == taken[None, :]).to(tl.int32), 1) == 0
            size = tl.where(is_free, tl.where(channel >= 0.0, tl.abs(value), -1.0), -1.0)
            most = tl.max(size, 0)
            found = tl.min(tl.where(size == most, channel, float("inf")), 0)
            is_found = tl.where(channel == found, size == most, False)
            first = tl.min(tl.where(is_found, token, n_candidate), 0)
            here = tl.sum(tl.where(token == first, tl.where(is_found, value, 0.0), 0.0), 0)
            is_better = tl.where(most == peak, found < best, most > peak)
            signed = tl.where(is_better, here, signed)
            peak, best, where = (tl.where(is_better, most, peak), tl.where(is_better, found, best),
                                 tl.where(is_better, first, where))
        is_there = peak >= 0.0
        taken = tl.where(slot == i, tl.where(is_there, best, -2.0), taken)
        tl.store(peaks + (stage * PEAKS + i) * 3, tl.where(is_there, best, -1.0))
        tl.store(peaks + (stage * PEAKS + i) * 3 + 1, where.to(tl.float64))
        tl.store(peaks + (stage * PEAKS + i) * 3 + 2, signed)
