"""The logits of every token of a chunk, a few rows at a time: a vocabulary's worth for each would not fit.

Shape letters: T tokens of a chunk, N of a slice, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.model.lockstep import ForwardRun, run_lockstep
from core.model.matmul import Ask, multiply
from core.model.model import Model, Resume, Tap
from core.quant.weight import Weight
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled
from core.trace.run import Side
from core.trace.taps import chain, no_tap

SLICE_VALUES = 1 << 24  # logits held at a time: 64 MiB of float32


def hidden_states(
    sides: Sequence[Side], tokens: Sequence[int], taps: Sequence[Tap], cancelled: IsCancelled,
    resume: Resume | None = None,
) -> list[Tensor]:
    """The output of the final norm [T, D] of each side, in one pass; equal weights are decoded once for all."""
    kept: dict[int, Tensor] = {}

    def keep(i: int) -> Tap:
        def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
            if stage == "final_norm":
                kept[i] = value
            return value
        return tap

    runs: list[ForwardRun] = [side.forward_run(tokens, chain(chain(side.bug(), tap), keep(i)), resume=resume)
                              for i, (side, tap) in enumerate(zip(sides, taps, strict=True))]
    run_lockstep(runs, cancelled, enough=lambda: len(kept) == len(sides))
    return [kept[i].clone() for i in range(len(sides))]


def logit_slices(side: Side, hidden_TD: Tensor, cancelled: IsCancelled) -> Iterator[Tensor]:
    """Yield the logits [N, V] of the tokens, slice after slice; the head is the model's own at the side's compute."""
    step = max(1, SLICE_VALUES // side.model.arch.n_vocab)
    for start in range(0, len(hidden_TD), step):
        yield logits(side, hidden_TD[start:start + step], cancelled)


def logits(side: Side, hidden_ND: Tensor, cancelled: IsCancelled) -> Tensor:
    """The logits [N, V] of final-norm outputs, scaled and capped as the family does."""
    def check() -> None:
        if cancelled():
            raise Cancelled("the run was cancelled")

    with torch.inference_mode():
        ask = Ask(hidden_ND, side.compute)
        y_NV = multiply(head_weight(side.model), [ask], check, side.model.resident)[0].to(hidden_ND.dtype)
        bias = side.model.vector(side.model.head + ".bias")
        return capped(side.model, y_NV if bias is None else y_NV + bias)


def head_weight(model: Model) -> Weight:
    """The output head, or the tied embedding."""
    return model.file.weight(model.head + ".weight")


def capped(model: Model, y_NV: Tensor) -> Tensor:
    """Scale and cap logits as the forward does."""
    scale, cap = model.arch.logit_scale, model.arch.logit_cap
    y_NV = y_NV if scale == 1 else y_NV * scale
    return cap * torch.tanh(y_NV / cap) if cap else y_NV


def untapped(n: int) -> list[Tap]:
    """No tap for each of n sides."""
    return [no_tap] * n
