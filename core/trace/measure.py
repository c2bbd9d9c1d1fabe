"""Measure an array of values as taps.py measures a tensor, for sources that bring values and no torch.

Definitions are TokenStats': float64, finite values only. x_TW: tokens x width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from core.trace.stats import COUNTS, MOMENTS, Factors, Massive, TokenStats, packed

MASSIVE_SIZE, MASSIVE_MULTIPLE, MASSIVE_CHANNELS = 100.0, 1000.0, 4  # DESIGN.md: massive activation
TOP_CHANNELS = 8

Values = npt.NDArray[np.floating]


def measure_array(x_TW: Values, first: int = 0, factors: tuple[Values, Values] | None = None) -> TokenStats:
    """Take each token's statistics. first: position of row 0. factors: left, right; x is their product."""
    rows = [_row(np.asarray(row, np.float64)) for row in x_TW]
    moments, counts = (np.array([[row[name] for row in rows] for name in names]) for names in (MOMENTS, COUNTS))
    size_TW = np.where(np.isfinite(x_TW), np.abs(x_TW), -1.0)
    stats = TokenStats(
        width=x_TW.shape[1], first=first, top=_top_channels(x_TW, size_TW, first),
        massive=_massive(x_TW, size_TW, first),
        table=packed(moments, counts), row=0,
    )
    row = int(size_TW.max(1).argmax())
    if factors is None or stats.peak_channel[row] < 0:
        return stats
    return replace(stats, factors=_factors(*factors, row, int(stats.peak_channel[row]), first))


def _row(x_W: npt.NDArray[np.float64]) -> dict[str, float | int]:
    nan_W, inf_W = np.isnan(x_W), np.isinf(x_W)
    finite_W = ~(nan_W | inf_W)
    clean = x_W[finite_W]
    mean = float(clean.mean()) if len(clean) else 0.0
    return {
        "mean": mean, "m2": float(np.square(clean - mean).sum()),
        "min": float(clean.min(initial=np.inf)), "max": float(clean.max(initial=-np.inf)),
        "sumsq": float(np.square(clean).sum()), "nan": int(nan_W.sum()), "inf": int(inf_W.sum()),
        "zero": int((x_W == 0).sum()),
        "peak_channel": int(np.where(finite_W, np.abs(x_W), -1.0).argmax()) if len(clean) else -1,
        "nan_channel": int(nan_W.argmax()) if nan_W.any() else -1,
    }


def _top_channels(x_TW: Values, size_TW: Values, first: int) -> tuple[tuple[int, int, float], ...]:
    peak_W, token_W = size_TW.max(0), size_TW.argmax(0)
    best = [int(c) for c in np.argsort(-peak_W, kind="stable")[:TOP_CHANNELS] if peak_W[c] >= 0]
    return tuple((c, first + int(token_W[c]), float(x_TW[token_W[c], c])) for c in best)


def _massive(x_TW: Values, size_TW: Values, first: int) -> Massive | None:
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


def _factors(left_TW: Values, right_TW: Values, row: int, channel: int, first: int) -> Factors:
    a, b = (x[row].astype(np.float64) - x[row].astype(np.float64).mean() for x in (left_TW, right_TW))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    correlation = float(a @ b) / norm if norm > 0 else None
    return Factors(first + row, channel, float(left_TW[row, channel]), float(right_TW[row, channel]), correlation)
