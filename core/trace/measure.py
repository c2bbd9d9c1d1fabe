"""Measure an array of values as taps.py measures a tensor, for sources that bring values and no torch.

Definitions are TokenStats': float64, finite values only. x_TW: tokens x width.
"""

from __future__ import annotations

import numpy as np

from core.kernels.cpu.build import TOP_CHANNELS
from core.system.arrays import AnyFloats, Floats
from core.trace.stats import (
    MASSIVE_CHANNELS,
    MASSIVE_MULTIPLE,
    MASSIVE_SIZE,
    ROW,
    Factors,
    Massive,
    TokenStats,
    peaks_of,
)


@np.errstate(invalid="ignore")  # a signalling NaN of a stranger's file is a NaN
def measure_array(x_TW: AnyFloats, first: int = 0, factors: tuple[AnyFloats, AnyFloats] | None = None) -> TokenStats:
    """Take each token's statistics. first: position of row 0. factors: left, right; x is their product."""
    table = np.array([[measure_row(np.asarray(x_W, np.float64)) for x_W in x_TW]], ROW)
    size_TW = np.where(np.isfinite(x_TW), np.abs(x_TW), -1.0)
    row = int(size_TW.max(1).argmax())
    channel = int(table["peak_channel"][0, row])
    product = _factors(*factors, row, channel, first) if factors is not None and channel >= 0 else None
    peaks = peaks_of(_top_channels(x_TW, size_TW, first), _massive(x_TW, size_TW, first), product, first)
    return TokenStats(x_TW.shape[1], first, table, 0, peaks)


def measure_row(x_W: Floats) -> tuple[float | int, ...]:
    """Measure the values of one token, as the columns of ROW."""
    nan_W, inf_W = np.isnan(x_W), np.isinf(x_W)
    finite_W = ~(nan_W | inf_W)
    clean = x_W[finite_W]
    mean = float(clean.mean()) if len(clean) else 0.0
    peak = int(np.where(finite_W, np.abs(x_W), -1.0).argmax()) if len(clean) else -1
    row = {
        "mean": mean, "m2": float(np.square(clean - mean).sum()), "min": float(clean.min(initial=np.inf)),
        "max": float(clean.max(initial=-np.inf)), "sumsq": float(np.square(clean).sum()), "nan": int(nan_W.sum()),
        "inf": int(inf_W.sum()), "zero": int((x_W == 0).sum()), "peak_channel": peak,
        "nan_channel": int(nan_W.argmax()) if nan_W.any() else -1,
    }
    return tuple(row[name] for name in ROW.names or ())


def _top_channels(x_TW: AnyFloats, size_TW: AnyFloats, first: int) -> tuple[tuple[int, int, float], ...]:
    peak_W, token_W = size_TW.max(0), size_TW.argmax(0)
    best = [int(c) for c in np.argsort(-peak_W, kind="stable")[:TOP_CHANNELS] if peak_W[c] >= 0]
    return tuple((c, first + int(token_W[c]), float(x_TW[token_W[c], c])) for c in best)


def _massive(x_TW: AnyFloats, size_TW: AnyFloats, first: int) -> Massive | None:
    finite = size_TW[size_TW >= 0]
    if not len(finite) or finite.max() <= MASSIVE_SIZE:
        return None
    middle = (len(finite) - 1) // 2  # the lower median, as torch takes it
    median = float(np.partition(finite, middle)[middle])
    far_W = (size_TW > max(MASSIVE_SIZE, MASSIVE_MULTIPLE * median)).any(0)
    channels = np.flatnonzero(far_W).tolist()
    if not 0 < len(channels) <= MASSIVE_CHANNELS:
        return None
    tokens = size_TW.argmax(0)
    places = ((first + int(tokens[c]), c, float(x_TW[tokens[c], c])) for c in channels)
    return Massive(median, tuple(sorted(places, key=lambda place: -abs(place[2]))))


def _factors(left_TW: AnyFloats, right_TW: AnyFloats, row: int, channel: int, first: int) -> Factors:
    a, b = (x[row].astype(np.float64) - x[row].astype(np.float64).mean() for x in (left_TW, right_TW))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    correlation = float(a @ b) / norm if norm > 0 else None
    return Factors(first + row, channel, float(left_TW[row, channel]), float(right_TW[row, channel]), correlation)
