"""The taps of the forward: watch a value (record), put another in its place (patch), one after the other (chain).

A tap never changes the value it records; what it returns is what the forward goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.forward import Tap
from core.kernels.fused import COLUMNS, TOP_CHANNELS, Peak, correlate, find_massive, is_measured, measure_fused
from core.kernels.library import Library, library
from core.stages import Place
from core.stats import Factors, Massive, TokenStats

MASSIVE_SIZE, MASSIVE_MULTIPLE, MASSIVE_CHANNELS = 100.0, 1000.0, 4  # DESIGN: massive activation
LEAST, MOST, PEAK_CHANNEL = (COLUMNS.index(name) for name in ("min", "max", "peak_channel"))
BLOCK_VALUES = 1 << 18  # measured at a time: 2 MiB of float64

Values = np.ndarray[Any, Any]
Change = Callable[[Tensor], Tensor]


def no_tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
    """Let the value pass."""
    return value


def record(seen: Callable[[Place, TokenStats], None], n_token: int, keep: dict[Place, Tensor] | None = None) -> Tap:
    """Measure every value and tell seen; keep holds a copy of the values where it is given."""
    product: dict[str, Tensor] = {}  # the factors of ffn_swigl, of the running layer

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        stats = measure(value, first=n_token - value.shape[0], factors=product if stage == "ffn_swigl" else None)
        if stage in ("ffn_up", "ffn_silu"):
            product[stage] = value
        elif stage == "ffn_swigl":
            product.clear()
        if keep is not None:
            keep[layer, stage] = value.cpu().clone()
        seen((layer, stage), stats)
        return value

    return tap


def record_values(into: dict[Place, Tensor]) -> Tap:
    """Keep every value as it is, unmeasured."""
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        into[layer, stage] = value
        return value

    return tap


def patch(changes: Mapping[Place, Change]) -> Tap:
    """Put change(value) in the place of the value at each named place."""
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        change = changes.get((layer, stage))
        return value if change is None else change(value)

    return tap


def jitter(unit: float, seed: int) -> Tap:
    """Disturb every value by relative noise of one rounding unit: value * (1 + unit * u), u uniform in [-1, 1]."""
    source = torch.Generator().manual_seed(seed)

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        u = torch.rand(value.shape, generator=source).to(value) * 2 - 1
        return value * (1 + unit * u)

    return tap


def chain(first: Tap, second: Tap) -> Tap:
    """Apply first, then second to what first returned."""
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        return second(layer, stage, first(layer, stage, value))

    return tap


def measure(x_TW: Tensor, first: int = 0, factors: Mapping[str, Tensor] | None = None) -> TokenStats:
    """Take the statistics of each token's values, in float64.

    first: position of row 0. factors: ffn_silu and ffn_up, where x is their product.
    """
    return finish(x_TW, first, *_columns(x_TW), factors)


def finish(
    x_TW: Tensor, first: int, columns: list[Values], peaks: list[Peak], factors: Mapping[str, Tensor] | None
) -> TokenStats:
    """Make TokenStats of the columns of COLUMNS and the channels' peaks; of the values where one is large."""
    top = tuple([(channel, first + row, value) for channel, row, value in peaks])
    massive, why = None, None
    if peaks and abs(peaks[0][2]) > MASSIVE_SIZE:
        massive = _massive(x_TW, first, abs(peaks[0][2]))
    if factors and peaks:
        absmax_T = np.maximum(np.abs(columns[LEAST]), np.abs(columns[MOST]))
        row = int(np.where(np.isfinite(absmax_T), absmax_T, -1.0).argmax())
        why = _factors(factors, row, int(columns[PEAK_CHANNEL][row]), first)
    return TokenStats(x_TW.shape[1], first, *columns, top, massive, why)  # type: ignore[arg-type, call-arg]


def _columns(x_TW: Tensor) -> tuple[list[Values], list[Peak]]:
    """Return the columns of COLUMNS, a value a token, and the peaks of the 8 channels that have the largest."""
    kernels = library() if is_measured(x_TW) else None
    if isinstance(kernels, Library):
        return measure_fused(kernels, x_TW)
    step = max(1, BLOCK_VALUES // x_TW.shape[1])
    blocks = [_moments(x_TW[i : i + step]) for i in range(0, max(1, x_TW.shape[0]), step)]
    return [np.concatenate([b[name] for b in blocks]) for name in COLUMNS], _top_channels(x_TW)


def _moments(x_TW: Tensor) -> dict[str, Values]:
    """Per-token columns of TokenStats for a block of tokens."""
    d = x_TW.double()
    nan, inf = torch.isnan(d), torch.isinf(d)
    bad = nan | inf
    n_T = d.shape[1] - bad.sum(1)
    clean = d.masked_fill(bad, 0.0) if bool(bad.any()) else d
    mean_T = clean.sum(1) / n_T.clamp(min=1)
    dev = (clean - mean_T[:, None]).masked_fill_(bad, 0.0)
    size = clean.abs().masked_fill_(bad, -1.0)
    columns = {
        "mean": mean_T, "m2": dev.square_().sum(1),
        "min": clean.masked_fill(bad, float("inf")).amin(1), "max": clean.masked_fill(bad, float("-inf")).amax(1),
        "sumsq": clean.square().sum(1), "nan": nan.sum(1), "inf": inf.sum(1), "zero": (d == 0).sum(1),
        "peak_channel": torch.where(n_T > 0, size.argmax(1), -1),
        "nan_channel": torch.where(nan.any(1), nan.int().argmax(1), -1),
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _top_channels(x_TW: Tensor) -> list[Peak]:
    """The largest peaks of channels; a tie goes to the lowest channel and row, which topk and max leave open."""
    if not len(x_TW):
        return []
    size = torch.nan_to_num(x_TW.abs(), nan=-1.0, posinf=-1.0)
    row_W = size.argmax(0)
    peaks, order = torch.sort(size.amax(0), descending=True, stable=True)
    best = zip(order[:TOP_CHANNELS].tolist(), peaks[:TOP_CHANNELS].tolist(), strict=True)
    return [(int(c), int(row_W[c]), float(x_TW[row_W[c], c])) for c, peak in best if peak >= 0]


def _massive(x_TW: Tensor, first: int, largest: float) -> Massive | None:
    kernels = library() if is_measured(x_TW) else None
    if isinstance(kernels, Library):
        found = find_massive(kernels, x_TW, MASSIVE_SIZE, MASSIVE_MULTIPLE, MASSIVE_CHANNELS)
        return None if found is None else _sorted_massive(found[0], first, found[1])
    small = int((x_TW.abs() < largest / MASSIVE_MULTIPLE).sum())  # NaN is not counted; the median needs a sort
    if 2 * small < int(torch.isfinite(x_TW).sum()):
        return None
    finite = x_TW[torch.isfinite(x_TW)].abs()
    median = float(finite.median())
    far = torch.nan_to_num(x_TW.abs(), nan=0.0, posinf=0.0) > max(MASSIVE_SIZE, MASSIVE_MULTIPLE * median)
    channels = far.any(0).nonzero().flatten().tolist()
    if not 0 < len(channels) <= MASSIVE_CHANNELS:
        return None
    tokens = [int(torch.nan_to_num(x_TW[:, c].abs(), nan=0.0, posinf=0.0).argmax()) for c in channels]
    return _sorted_massive(
        median, first, [(t, c, float(x_TW[t, c])) for c, t in zip(channels, tokens, strict=True)])


def _sorted_massive(median: float, first: int, places: list[tuple[int, int, float]]) -> Massive:
    return Massive(median, tuple(sorted(((first + t, c, v) for t, c, v in places), key=lambda p: -abs(p[2]))))


def _factors(product: Mapping[str, Tensor], row: int, channel: int, first: int) -> Factors:
    kernels = library() if all(is_measured(value) for value in product.values()) else None
    if isinstance(kernels, Library):
        x, y = product["ffn_silu"][row], product["ffn_up"][row]
        sums = correlate(kernels, x, y)
        if sums is not None:
            norm = math.sqrt(sums[1] * sums[2])
            return Factors(first + row, channel, float(x[channel]), float(y[channel]), sums[0] / norm if norm else None)
    left, right = (product[stage][row].cpu().numpy().astype(np.float64) for stage in ("ffn_silu", "ffn_up"))
    a, b = left, right
    if not math.isfinite(left.sum() + right.sum()):
        good = np.isfinite(left) & np.isfinite(right)
        a, b = left[good], right[good]
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))  # not a @ b: BLAS wakes its threads for that
    correlation = float((a * b).sum()) / norm if norm else None
    return Factors(first + row, channel, float(left[channel]), float(right[channel]), correlation)
