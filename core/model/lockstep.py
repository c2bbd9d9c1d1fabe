"""Run several forwards in lockstep, so that each weight is decoded once for all of them.

Runs advance in the order given, one product at a time, so that a later one may use what
an earlier one has just tapped (the float64 replay does). It neither measures nor judges.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.model.matmul import Ask, multiply, multiply_joined
from core.model.model import Product, Steps
from core.system.cancel import IsCancelled, never
from core.system.errors import Cancelled
from core.system.gpu_errors import device_error
from core.system.mapped_file import refuse_cut


@dataclass(slots=True)
class ForwardRun:
    """One run of the forward with its compute, thread count and device; result is set when it ends.

    plain: multiply decoded weights, whatever kernels there are: what a kernel is held against must not be itself.
    """

    steps: Steps
    compute: str = "f32"
    threads: int | None = None
    plain: bool = False
    device: torch.device | None = None
    ask: Product | None = None
    result: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The logits [1, V] of the last token, float32; of a run that has ended."""
        assert self.result is not None
        return self.result

    def advance(self, value: Tensor | None) -> None:
        """Send the product it waits for (None at the start) and run to its next request or its end."""
        self.settle()
        try:
            self.ask = next(self.steps) if value is None else self.steps.send(value)
        except StopIteration as end:
            self.ask, self.result = None, end.value

    def settle(self) -> None:
        """Set torch to this run's thread count, and to its GPU."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def run_lockstep(
    runs: Sequence[ForwardRun], cancelled: IsCancelled = never, enough: IsCancelled = never
) -> list[Tensor]:
    """Run all to their end and return their logits; raises Cancelled when cancelled() turns true, DeviceError.

    enough: turns true to stop early, without logits. torch keeps the thread count that it had before.
    """
    def check() -> None:
        if cancelled():
            raise Cancelled("the run was cancelled")

    usual = torch.get_num_threads()
    for run in runs:
        run.threads = run.threads or usual  # else it would go on with the count of the run before it
    try:
        with torch.inference_mode():
            for run in runs:
                run.advance(None)
            while any(run.ask for run in runs) and not enough():
                check()
                _round(runs, check)
    except RuntimeError as error:
        failed = device_error(error)
        if failed is None:
            raise
        raise failed from error
    finally:
        for run in runs:
            run.steps.close()
        torch.set_num_threads(usual)
    refuse_cut()
    return [run.result for run in runs if run.result is not None]


def _round(runs: Sequence[ForwardRun], check: Callable[[], None]) -> None:
    """Answer every waiting run once: runs that ask for the same weight on the same device share its decoding."""
    if len(runs) == 1 and runs[0].ask is not None:
        runs[0].advance(_answer(runs, [runs[0].ask], check)[0])
        return
    answers: dict[int, Tensor] = {}
    waiting = {i: run.ask for i, run in enumerate(runs) if run.ask is not None}
    for i, ask in waiting.items():
        if i in answers:
            continue
        same = [j for j, other in waiting.items() if _shares(ask, other) and runs[j].threads == runs[i].threads]
        found = _answer([runs[j] for j in same], [waiting[j] for j in same], check)
        answers |= zip(same, found, strict=True)
    for i, value in answers.items():
        runs[i].advance(value)


def _answer(runs: Sequence[ForwardRun], products: Sequence[Product], check: Callable[[], None]) -> list[Tensor]:
    """The products by one weight that these runs wait for, each in the type of what is multiplied."""
    runs[0].settle()
    first = products[0]
    asks = [Ask(ask.x, run.compute, run.plain, ask.experts) for run, ask in zip(runs, products, strict=True)]
    made = (multiply_joined((first.weight, *first.more), asks, check, first.resident) if first.more
            else multiply(first.weight, asks, check, first.resident))
    return [y if y.dtype == ask.x.dtype else y.to(ask.x.dtype) for y, ask in zip(made, products, strict=True)]


def _shares(a: Product, b: Product) -> bool:
    same = len(a.more) == len(b.more) and all(map(operator.is_, (a.weight, *a.more), (b.weight, *b.more)))
    return same and a.x.device == b.x.device
