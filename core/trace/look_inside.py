"""Look into one layer of a run: the values of its stages, who attends to whom, and what the model would say there.

For a person to read: nothing is judged here. Shape letters: T tokens, S positions, N query heads, W width of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.model.lockstep import run_lockstep
from core.model.mixers.attention import attend_by
from core.model.model import Model, Resume
from core.system.arrays import Floats32, Ints
from core.system.cancel import IsCancelled, never
from core.trace.record import NextToken
from core.trace.run import Side, top_tokens
from core.trace.taps import chain

BINS = 61


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a stage's finite values from low to high; not_finite: how many others there are.

    Bins are equal in asinh(x / middle): as x up to middle, the 9th decile of |x|, as its logarithm beyond, so that one
    massive value does not leave all others in one bin.
    """

    low: float
    high: float
    middle: float
    counts: Ints
    not_finite: int


@dataclass(frozen=True, slots=True)
class LayerView:
    """What one layer holds. histograms: by stage; attention: shares [N, T, S], None where no attention is in it.

    lens: the tokens that the final norm and the head make of the layer's output at the last position.
    """

    layer: int
    histograms: Mapping[str, Histogram]
    attention: Floats32 | None
    lens: tuple[NextToken, ...]


def layer_view(side: Side, tokens: Sequence[int], layer: int, cancelled: IsCancelled = never) -> LayerView:
    """Run the tokens up to that layer's end, then its output through the final norm and the head; Cancelled.

    layer: from 0; the caller has made sure that it is there.
    """
    values: dict[str, Tensor] = {}

    def keep(at: int | None, stage: str, value: Tensor) -> Tensor:
        if at == layer:
            values[stage] = value
        return value

    run_lockstep([side.forward_run(tokens, chain(side.bug(), keep))], cancelled, lambda: "output" in values)
    rest = side.forward_run(tokens, lambda at, stage, value: value, resume=Resume(side.model.arch.n_layer,
                                                                                values["output"]))
    logits, = run_lockstep([rest], cancelled)
    return LayerView(layer, {stage: histogram(value) for stage, value in values.items()},
                     _attention(side.model, layer, values), top_tokens(side.tokenizer, logits))


def histogram(value: Tensor) -> Histogram:
    """Count a stage's values."""
    flat = value.detach().double().flatten().cpu()
    finite = flat[torch.isfinite(flat)]
    if not len(finite):
        return Histogram(0.0, 0.0, 1.0, np.zeros(BINS, dtype=np.int64), len(flat))
    sizes = finite.abs().sort().values
    middle = float(sizes[len(sizes) * 9 // 10]) or float(sizes[-1]) or 1.0
    low, high = float(finite.min()), float(finite.max())
    placed = torch.asinh(finite / middle).numpy()
    ends = (placed.min(), placed.max()) if high > low else (placed[0] - 1, placed[0] + 1)
    counts, _ = np.histogram(placed, BINS, ends)
    return Histogram(low, high, middle, counts, len(flat) - len(finite))


def _attention(model: Model, layer: int, values: Mapping[str, Tensor]) -> Floats32 | None:
    """Each head's share of every position [N, T, S], by the queries and keys as they were; without a sink's own share.

    The mix of one-hot values is the shares themselves: the forward's own attention, nothing written twice.
    """
    found = model.arch.layers[layer]
    a = found.attention
    if a is None or not {"q_rope", "k_rope"} <= values.keys():
        return None
    q, k, n_token = values["q_rope"].float().cpu(), values["k_rope"].float().cpu(), len(values["q_rope"])
    one_hot = torch.eye(n_token)[:, None, :].expand(n_token, a.n_kv, n_token)
    sinks_N = model.tensor(found.prefix + "attn_sinks.weight").float().cpu() if a.sinks else None
    mix = attend_by(a, q.view(n_token, a.n_head, -1), k.view(n_token, a.n_kv, -1), one_hot, sinks_N)
    shares: Floats32 = mix.view(n_token, a.n_head, n_token).transpose(0, 1).contiguous().numpy()
    return shares
