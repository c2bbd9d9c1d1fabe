"""The taps of the forward: watch a value (record), put another in its place (patch), one after the other (chain).

A tap never changes the value it records; what it returns is what the forward goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from core.kernels.cpu.bindings import correlate, find_massive, is_measured, measure_fused
from core.kernels.cpu.build import TOP_CHANNELS, Library, library
from core.model.experts import margins
from core.model.model import Tap
from core.model.stages import FACTORS, PRODUCT, ROUTED, ROUTER, Place
from core.system.arrays import Floats, Floats32, Ints, Rows
from core.trace.stats import (
    FACTORS_NOT_FINITE,
    MASSIVE_CHANNELS,
    MASSIVE_MULTIPLE,
    MASSIVE_SIZE,
    PEAKS,
    ROW,
    Factors,
    Massive,
    Routes,
    TokenStats,
    peaks_of,
    put_factors,
    put_massive,
)

BLOCK_VALUES = 1 << 18  # measured at a time without kernels: 2 MiB of float64
HELD_VALUES = 1 << 22  # of a layer, 16 MiB: beyond that they would raise the peak, and a call is lost beside the work

Change = Callable[[Tensor], Tensor]


def no_tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
    """Let the value pass."""
    return value


def record(on_cell: Callable[[Place, TokenStats], None], n_token: int, keep: dict[Place, Tensor] | None = None) -> Tap:
    """Measure every value and call on_cell, in order, when its layer ends; keep holds a copy of the values where given.

    Until then a value is held, not copied: nobody may change it in place.
    """
    held: dict[Place, Tensor] = {}
    product: dict[str, Tensor] = {}  # the factors of ffn_swigl, of the running layer
    size = 0

    def tell() -> None:
        nonlocal size
        taken, size = dict(held), 0
        held.clear()
        values = [counted(place, x) for place, x in taken.items()]
        table, peaks = _measured(values, [_take_factors(place, x, product) for place, x in zip(
            taken, values, strict=True)])
        first = n_token - values[0].shape[0]
        for index, ((place, full), x) in enumerate(zip(taken.items(), values, strict=True)):
            cell = TokenStats(x.shape[1], first, table, index, peaks)
            if place[1] == ROUTED:
                by_expert(full, table, peaks, index)
                cell = replace(cell, routes=routes_of(full, taken.get((place[0], ROUTER))))
            on_cell(place, cell)

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        nonlocal size
        if held and next(iter(held))[0] != layer:
            tell()
        held[layer, stage] = value
        size += value.numel()
        if keep is not None:
            keep[layer, stage] = value.cpu().clone()
        if layer is None or stage == "output" or size > HELD_VALUES:
            tell()
        return value

    return tap


def _take_factors(place: Place, x_TW: Tensor, product: dict[str, Tensor]) -> list[Tensor]:
    """Put a factor into product; return both, and take them out, where x is their product."""
    if place[1] in FACTORS:
        product[place[1]] = x_TW
    return [product.pop(stage) for stage in FACTORS] if place[1] == PRODUCT and product else []


def counted(place: Place, x_TW: Tensor) -> Tensor:
    """What of a value is measured: all of it; of dense routing weights those of the chosen experts."""
    return x_TW if place[1] != ROUTED else x_TW.gather(1, _chosen(x_TW))


def routes_of(weights_TE: Tensor, router_TE: Tensor | None) -> Routes:
    """What a router chose, and by how much where its logits are there."""
    ids_TK = _chosen(weights_TE)
    same = router_TE is not None and router_TE.shape == weights_TE.shape
    margin = margins(router_TE, weights_TE).cpu().numpy() if router_TE is not None and same else None
    weights = weights_TE.gather(1, ids_TK).double().cpu().numpy()
    return Routes(weights_TE.shape[1], ids_TK.cpu().numpy(), weights, margin)


def measure_routes(weights: Floats32, router: Floats32 | None, first: int) -> TokenStats:
    """Measure dense routing weights [T, E] by themselves; router: the logits. first: position of row 0."""
    weights_TE = torch.from_numpy(weights)
    router_TE = None if router is None else torch.from_numpy(router)
    chosen_TK = counted((None, ROUTED), weights_TE)
    table, peaks = _measured_by_torch([chosen_TK], [[]])
    by_expert(weights_TE, table, peaks, 0)
    return TokenStats(chosen_TK.shape[1], first, table, 0, peaks, routes_of(weights_TE, router_TE))


def by_expert(weights_TE: Tensor, table: Rows, peaks: Rows, index: int) -> None:
    """Name the channels of measured routing weights by their experts."""
    ids_TK, rows = _chosen(weights_TE).cpu().numpy(), table[index]
    for name in ("peak_channel", "nan_channel"):
        column = rows[name]
        rows[name] = np.where(column >= 0, ids_TK[np.arange(len(ids_TK)), column], column)
    top = peaks_of(_top_channels(weights_TE))
    for name in ("n", "channel", "row", "value"):
        peaks[name][index] = top[name][0]


def _chosen(x_TE: Tensor) -> Tensor:
    """The chosen experts of each token, by rising id: as many as the token with the most has."""
    most = max(1, int((x_TE != 0).sum(1).max()))
    return (x_TE != 0).to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :most].sort(-1).values


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


def add_noise(unit: float, seed: int) -> Tap:
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
    table, peaks = _measured([x_TW], [[factors[stage] for stage in FACTORS] if factors else []])
    return TokenStats(x_TW.shape[1], first, table, 0, peaks)


def put_outliers(x_TW: Tensor, table: Rows, peaks: Rows, index: int, factors: Sequence[Tensor]) -> None:
    """Write what of measured values needs them beside the peaks: where one is large, or where they are a product."""
    one = peaks[index]
    if largest_of(peaks, index) > MASSIVE_SIZE:
        put_massive(one, _massive(x_TW, largest_of(peaks, index)))
    if factors and one["n"]:
        rows = table[index]
        absmax_T = np.maximum(np.abs(rows["min"]), np.abs(rows["max"]))
        token = int(np.where(np.isfinite(absmax_T), absmax_T, -1.0).argmax())
        put_factors(one, _factors(factors, token, int(rows["peak_channel"][token])))


def largest_of(peaks: Rows, index: int) -> float:
    """The largest |x| of a stage; 0 where none is finite."""
    return abs(float(peaks["value"][index, 0]))


def _measured(values: Sequence[Tensor], factors: Sequence[Sequence[Tensor]]) -> tuple[Rows, Rows]:
    """Measure values of equally many tokens; factors: for each the two whose product it is, or none."""
    kernels = library() if all(map(is_measured, values)) else None
    if not isinstance(kernels, Library):
        return _measured_by_torch(values, factors)
    table, peaks = measure_fused(kernels, values, factors, ROW, PEAKS, (MASSIVE_SIZE, MASSIVE_MULTIPLE))
    for index in np.flatnonzero(peaks["factors"] == FACTORS_NOT_FINITE).tolist():
        row, channel = int(peaks["factors_row"][index]), int(peaks["factors_channel"][index])
        put_factors(peaks[index], _factors(factors[index], row, channel))
    return table, peaks


def _measured_by_torch(values: Sequence[Tensor], factors: Sequence[Sequence[Tensor]]) -> tuple[Rows, Rows]:
    table = np.empty((len(values), len(values[0])), ROW)
    peaks = np.concatenate([peaks_of(_top_channels(x_TW)) for x_TW in values])
    for index, (x_TW, pair) in enumerate(zip(values, factors, strict=True)):
        step = max(1, BLOCK_VALUES // x_TW.shape[1])
        for start in range(0, len(x_TW), step):
            for name, column in _moments(x_TW[start:start + step]).items():
                table[name][index, start:start + step] = column
        put_outliers(x_TW, table, peaks, index, pair)
    return table, peaks


def _moments(x_TW: Tensor) -> dict[str, Floats | Ints]:
    """The columns of ROW for a block of tokens."""
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


def _top_channels(x_TW: Tensor) -> list[tuple[int, int, float]]:
    """The largest peaks of channels; a tie goes to the lowest channel and row, which topk and max leave open."""
    if not len(x_TW):
        return []
    size = torch.nan_to_num(x_TW.abs(), nan=-1.0, posinf=-1.0)
    row_W = size.argmax(0)
    peaks, order = torch.sort(size.amax(0), descending=True, stable=True)
    best = zip(order[:TOP_CHANNELS].tolist(), peaks[:TOP_CHANNELS].tolist(), strict=True)
    return [(int(c), int(row_W[c]), float(x_TW[row_W[c], c])) for c, peak in best if peak >= 0]


def _massive(x_TW: Tensor, largest: float) -> Massive | None:
    kernels = library() if is_measured(x_TW) else None
    if isinstance(kernels, Library):
        found = find_massive(kernels, x_TW, MASSIVE_SIZE, MASSIVE_MULTIPLE, MASSIVE_CHANNELS)
        return None if found is None else Massive(found[0], tuple(found[1]))
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
    return Massive(median, tuple((t, c, float(x_TW[t, c])) for c, t in zip(channels, tokens, strict=True)))


def _factors(product: Sequence[Tensor], row: int, channel: int) -> Factors:
    x, y = product
    kernels = library() if is_measured(x) and is_measured(y) else None
    if isinstance(kernels, Library):
        found = correlate(kernels, x, y, row, channel)
        if found is not None:
            norm = math.sqrt(found[3] * found[4])
            return Factors(row, channel, found[0], found[1], found[2] / norm if norm else None)
    left, right = (value[row].cpu().numpy().astype(np.float64) for value in (x, y))
    a, b = left, right
    if not math.isfinite(left.sum() + right.sum()):
        good = np.isfinite(left) & np.isfinite(right)
        a, b = left[good], right[good]
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))  # not a @ b: BLAS starts its threads for that
    correlation = float((a * b).sum()) / norm if norm else None
    return Factors(row, channel, float(left[channel]), float(right[channel]), correlation)
