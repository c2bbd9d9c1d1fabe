"""What one tensor costs, exactly: the original with that tensor alone from the quantised file, KL from the original.

A swap goes on from the original's residual before the tensor's layer, kept of every layer (layers x T x D floats), and
is held to the original's logits, kept too where all of them fit in KEPT_LOGITS.
Shape letters: T tokens, D model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from core.damage.kl import compare_logits
from core.damage.logits import hidden_states, logit_slices, untapped
from core.model.model import Resume
from core.quant.weight import Weight
from core.system.cancel import IsCancelled
from core.trace.run import Side

KEPT_LOGITS = 1 << 28  # of a text: 1 GiB of float32
BLOCK = re.compile(r"blk\.([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Boundaries:
    """A chunk of the original: its tokens, the residual before each layer (0: the embedding), its final-norm output.

    logits: of its slices; none where they are made again each time.
    """

    tokens: Sequence[int]
    before: Mapping[int, Tensor]
    hidden: Tensor
    logits: tuple[Tensor, ...] = ()


def boundaries(
    original: Side, tokens: Sequence[int], cancelled: IsCancelled, keep_logits: bool = False
) -> Boundaries:
    """Run a chunk of the original and keep what a swap goes on from."""
    before: dict[int, Tensor] = {}

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage == "output":
            before[(layer or 0) + 1] = value.clone()
        return value

    hidden = hidden_states([original], tokens, [tap], cancelled)[0]
    return Boundaries(tokens, before, hidden, tuple(logit_slices(original, hidden, cancelled)) if keep_logits else ())


def with_weights(side: Side, weights: Mapping[str, Weight]) -> Side:
    """The side with other weights under these names."""
    file = side.model.file
    return replace(side, model=replace(side.model, file=replace(file, weights={**file.weights, **weights})))


def swap_kl(
    original: Side, weights: Mapping[str, Weight], chunks: Sequence[Boundaries], cancelled: IsCancelled
) -> float:
    """Mean KL a token of the original from itself with these weights in it, in nats; of no weight exactly 0."""
    swapped, total, n = with_weights(original, weights), 0.0, 0
    n_layer = original.model.arch.n_layer
    start = min((first_layer(name, n_layer) for name in weights), default=n_layer)
    can_resume = original.model.arch.can_resume
    for chunk in chunks:
        resume = Resume(start, chunk.before[start]) if can_resume and start in chunk.before else None
        hidden = hidden_states([swapped], chunk.tokens, untapped(1), cancelled, resume)[0]
        slices = chunk.logits or logit_slices(original, chunk.hidden, cancelled)
        total += kl_sum(slices, logit_slices(swapped, hidden, cancelled))
        n += len(chunk.tokens)
    return total / n


def kl_sum(slices_a: Iterable[Tensor], slices_b: Iterable[Tensor]) -> float:
    """The sum over the tokens of KL(A || B), of their logits' slices [N, V]."""
    total = 0.0
    for y_a, y_b in zip(slices_a, slices_b, strict=True):
        total += float(compare_logits(y_a, y_b, y_a.new_zeros(len(y_a)).long())[0].sum())
    return total


def first_layer(name: str, n_layer: int) -> int:
    """The layer that reads a tensor; after the last for the head's own, -1 for one that all layers come after."""
    found = BLOCK.match(name)
    return int(found[1]) if found else n_layer if name.startswith("output") else -1


def exact_bill(
    original: Side, quantised: Mapping[str, Weight], chunks: Sequence[Boundaries], cancelled: IsCancelled,
    on_tensor: Callable[[str, int], None] = lambda name, at: None,
) -> dict[str, float]:
    """The exact KL of every tensor by itself."""
    found: dict[str, float] = {}
    for at, (name, weight) in enumerate(quantised.items()):
        on_tensor(name, at)
        found[name] = swap_kl(original, {name: weight}, chunks, cancelled)
    return found
