"""The watching tap on a GPU: a layer is measured in one launch and read while the next ones run. Definitions: stats.py.

No stage waits for the host. A layer's values are held until its statistics are there, of two layers at most, so that
what only few cells need (massive values, the factors of a product) can still be taken from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.kernels.gpu.statistics import launch_statistics, read_statistics
from core.model.model import Tap
from core.model.stages import FACTORS, PRODUCT, ROUTED, ROUTER, Place
from core.trace.stats import MASSIVE_SIZE, PEAKS, ROW, TokenStats
from core.trace.taps import by_expert, counted, largest_of, put_outliers, routes_of

ON_HOST = 1 << 18  # values of a stage from which a massive one is looked for on the device
AHEAD = 2  # layers that may wait for their statistics


@dataclass(slots=True)
class Batch:
    """Stages that are measured together: their places and values, then the host's copy and when it is whole."""

    values: dict[Place, Tensor] = field(default_factory=dict)
    host: Tensor | None = None
    ready: torch.cuda.Event | None = None


def record_on_device(
    on_cell: Callable[[Place, TokenStats], None], n_token: int, keep: dict[Place, Tensor] | None = None
) -> Tap:
    """Measure as taps.record does and call on_cell in the same order, a layer or two later; the logits end it."""
    waiting: deque[Batch] = deque()
    batch = Batch()
    beside: torch.cuda.Stream | None = None

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        nonlocal batch, beside
        if beside is None and value.is_cuda:
            beside = torch.cuda.Stream(value.device)  # type: ignore[no-untyped-call]
        values = batch.values
        if values and (layer is None or (layer, stage) in values or next(iter(values))[0] != layer):
            waiting.append(_launched(batch))
            batch = Batch()
        batch.values[layer, stage] = value.contiguous()
        if keep is not None:
            keep[layer, stage] = value.cpu().clone()
        last = stage == "logits"
        if last:
            waiting.append(_launched(batch))
        while waiting and (last or len(waiting) > AHEAD or _is_ready(waiting[0])):
            for place, stats in _taken(waiting.popleft(), n_token, beside):
                on_cell(place, stats)
        return value

    return tap


def _taken(done: Batch, n_token: int, beside: torch.cuda.Stream | None) -> Iterator[tuple[Place, TokenStats]]:
    """The statistics of a batch, once they are there; what needs its values is done beside the computation's stream."""
    assert done.host is not None
    if done.ready is not None:
        done.ready.synchronize()
    table, peaks = read_statistics(done.host.numpy(), len(done.values), ROW, PEAKS)
    for index, (place, dense) in enumerate(done.values.items()):
        x = counted(place, dense)
        factors = [done.values[place[0], stage] for stage in FACTORS] if place[1] == PRODUCT else []
        is_large = largest_of(peaks, index) > MASSIVE_SIZE
        with torch.cuda.stream(beside) if is_large or factors else nullcontext():
            few = x.cpu() if is_large and x.numel() <= ON_HOST else x
            put_outliers(few, table, peaks, index, factors)
            stats = TokenStats(x.shape[1], n_token - len(x), table, index, peaks)
            if place[1] == ROUTED:
                by_expert(dense, table, peaks, index)
                stats = replace(stats, routes=routes_of(dense, done.values.get((place[0], ROUTER))))
        yield place, stats


def _launched(batch: Batch) -> Batch:
    measured = launch_statistics([counted(place, x) for place, x in batch.values.items()])
    if measured.device.type != "cuda":
        batch.host = measured
        return batch
    batch.host = torch.empty(measured.shape, dtype=measured.dtype, pin_memory=True)
    batch.host.copy_(measured, non_blocking=True)
    batch.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    batch.ready.record()
    return batch


def _is_ready(batch: Batch) -> bool:
    return batch.ready is None or bool(batch.ready.query())  # type: ignore[no-untyped-call]
