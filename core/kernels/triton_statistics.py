"""Measure every stage of a layer on a GPU in one launch, copied to the host behind the computation's back.

A program takes one segment of one token's values, in registers, in float64; segments are merged on the host (parallel
moments), so no sum depends on what else is measured. Definitions: core/stats.py. Its caller: device_watch.py.
Shapes: J segments, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

SEGMENT, TOP = 2048, 8
COLUMNS = ("n", "mean", "m2", "min", "max", "sumsq", "nan", "inf", "zero", "nan_channel")
WIDTH = len(COLUMNS) + 2 * TOP  # then the channels and the values of the largest |x|
Peak = tuple[int, int, float]  # channel, row, value
Columns = dict[str, np.ndarray[Any, Any]]


def launch_statistics(values: Sequence[Tensor]) -> Tensor:
    """Start measuring [T, width] float32 tensors of one T; returns [T, J, WIDTH] float64 on their device."""
    n_token = len(values[0])
    jobs = [(x.data_ptr() + 4 * start, x.shape[1], min(SEGMENT, x.shape[1] - start), start)
            for x in values for start in range(0, x.shape[1], SEGMENT)]
    table = torch.tensor(jobs, dtype=torch.int64).to(values[0].device, non_blocking=True)
    out = torch.empty((n_token, len(jobs), WIDTH), dtype=torch.float64, device=values[0].device)
    assert all(x.is_contiguous() and len(x) == n_token and x.dtype == torch.float32 for x in values)
    if n_token:
        _segment[(len(jobs), n_token)](table, out, SIZE=SEGMENT, PEAKS=TOP, COLUMNS=WIDTH, num_warps=4)
    return out


def read_statistics(measured: np.ndarray[Any, Any], widths: Sequence[int]) -> list[tuple[Columns, list[Peak]]]:
    """Merge each tensor's segments: the per-token columns of TokenStats, and the peaks of the 8 largest channels."""
    results, first = [], 0
    for width in widths:
        last = first + -(-width // SEGMENT)
        results.append(_merge(measured[:, first:last]))
        first = last
    return results


def _merge(part_TJ: np.ndarray[Any, Any]) -> tuple[Columns, list[Peak]]:
    each = {name: part_TJ[:, :, i] for i, name in enumerate(COLUMNS)}
    n, mean, m2 = (each[name][:, 0].copy() for name in ("n", "mean", "m2"))
    for j in range(1, part_TJ.shape[1]):
        more, gap = each["n"][:, j], each["mean"][:, j] - mean
        total = np.maximum(n + more, 1)
        mean = mean + gap * (more / total)
        m2 = m2 + each["m2"][:, j] + gap**2 * (n * more / total)
        n = n + more
    channels, values = (part_TJ[:, :, at:at + TOP] for at in (len(COLUMNS), len(COLUMNS) + TOP))
    largest = np.where(channels[:, :, 0] >= 0, np.abs(values[:, :, 0]), -1.0).argmax(1)
    rows = np.arange(len(part_TJ))
    bad = np.where(each["nan_channel"] >= 0, each["nan_channel"], np.inf).min(1)
    columns = {
        "mean": mean, "m2": m2, "min": each["min"].min(1), "max": each["max"].max(1), "sumsq": each["sumsq"].sum(1),
        "nan": each["nan"].sum(1), "inf": each["inf"].sum(1), "zero": each["zero"].sum(1),
        "peak_channel": channels[rows, largest, 0], "nan_channel": np.where(np.isfinite(bad), bad, -1),
    }
    whole = ("nan", "inf", "zero", "peak_channel", "nan_channel")
    return {k: v.astype(np.int64) if k in whole else v for k, v in columns.items()}, _peaks(channels, values)


def _peaks(channels: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> list[Peak]:
    """The largest of each channel, of the 8 channels that have the largest; a tie goes to the lowest channel, then row.

    A channel of the 8 is among the 8 of its segment in the row where it peaks, so the candidates hold all of them.
    """
    row, _, _ = np.nonzero(channels >= 0)
    channel, value = channels[channels >= 0].astype(np.int64), values[channels >= 0]
    order = np.lexsort((row, channel, -np.abs(value)))
    _, seen = np.unique(channel[order], return_index=True)
    best = order[np.sort(seen)[:TOP]]
    return [(int(channel[i]), int(row[i]), float(value[i])) for i in best]


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
    for i in tl.static_range(PEAKS):
        peak = tl.max(left, 0)
        where = tl.min(tl.where(left == peak, at, SIZE), 0)
        value = tl.sum(tl.where(at == where, wide, 0.0), 0)
        tl.store(row + 10 + i, tl.where(peak >= 0.0, where + channel, -1).to(tl.float64))
        tl.store(row + 10 + PEAKS + i, value)
        left = tl.where(at == where, -2.0, left)
