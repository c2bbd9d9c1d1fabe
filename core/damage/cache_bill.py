"""What a quantised KV cache costs by layer and head: its roundings' share of the output's KL, from one backward pass.

A part is billed as a tensor is (gradient.py): 1/2 sum over tokens and channels of E[g^2] e^2, with e what the cache's
type makes of a key, a value, or the query that meets the keys, and g the gradient there of the unrounded model.
Shape letters: T tokens, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle

import torch
from torch import Tensor

from core.damage.corpus import Corpus
from core.damage.gradient import add_to_bill
from core.quant.cache_types import KvTypes
from core.quant.dequantize import decode_rows
from core.quant.weight import Weight
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled
from core.trace.run import SEED, Side

DRAWS = 2  # of a token at each position
MOST_TOKENS = 512


@dataclass(frozen=True, slots=True)
class HeadCost:
    """What one head's queries, keys or values (part) cost in a layer, in nats a token."""

    layer: int
    part: str
    head: int
    kl: float


def cache_bill(a: Side, kv: KvTypes, text: Corpus, cancelled: IsCancelled) -> tuple[HeadCost, ...]:
    """Bill every head of A for being kept so, over the text's first tokens; layers in order."""
    chunks = [chunk[:MOST_TOKENS] for chunk in text.chunks[:max(1, MOST_TOKENS // len(text.chunks[0]))]]
    layers = [x.index for x in a.model.arch.layers if x.attention is not None and "attention" in x.mixers]
    borrowed = {x.index for x in a.model.arch.layers if x.attention is not None and not x.attention.own_k}
    charge, generator = _NoWeights(cancelled), torch.Generator().manual_seed(SEED)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(a.threads or threads)
        watched = Watched(kv.k, kv.v, cycle([(i, part) for i in layers for part in _parts(i in borrowed)]))
        for chunk in chunks:
            add_to_bill(replace(a.model, kv=watched), chunk, charge, generator)
    finally:
        torch.set_num_threads(threads)
    n = DRAWS * sum(map(len, chunks))
    return tuple(HeadCost(i, part, head, float(kl) / (2 * n)) for (i, part), heads in sorted(watched.costs.items())
                 for head, kl in enumerate(heads))


def _parts(is_borrowed: bool) -> tuple[str, ...]:
    return ("q",) if is_borrowed else ("k", "v", "q")  # in the order that a layer asks


@dataclass(frozen=True, slots=True, eq=False)
class Watched(KvTypes):
    """Rounds nothing, and sums g^2 e^2 of what it would have rounded, by layer, part and head.

    places: what each call is of, chunk after chunk.
    """

    places: Iterator[tuple[int, str]] = field(default_factory=lambda: iter(()))
    costs: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """It wants to be asked."""
        return False

    def query(self, q_TNH: Tensor) -> Tensor:
        """The query itself."""
        return self._watch(q_TNH, super(Watched, self).query)

    def key(self, k_TKH: Tensor) -> Tensor:
        """The key itself."""
        return self._watch(k_TKH, super(Watched, self).key)

    def value(self, v_TKH: Tensor) -> Tensor:
        """The value itself."""
        return self._watch(v_TKH, super(Watched, self).value)

    def _watch(self, x_TNH: Tensor, rounds: Callable[[Tensor], Tensor]) -> Tensor:
        place = next(self.places)
        x_TNH = x_TNH.clone()
        e2_TNH = (rounds(x_TNH.detach()) - x_TNH.detach()).square()

        def charge(grad_TNH: Tensor) -> None:
            cost_N = (grad_TNH.square() * e2_TNH).sum((0, 2)).double()
            self.costs[place] = self.costs.get(place, torch.zeros_like(cost_N)) + cost_N

        if x_TNH.requires_grad:
            x_TNH.register_hook(charge)  # type: ignore[no-untyped-call]
        return x_TNH


@dataclass(frozen=True, slots=True)
class _NoWeights:
    """Decodes weights and takes no gradient of theirs."""

    cancelled: IsCancelled
    draws: int = DRAWS

    def add(self, weight: Weight, expert: int | None, start: int, grad_RC: Tensor) -> None:
        """Charge nothing."""

    def decode(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Rows as they are."""
        if self.cancelled():
            raise Cancelled("the run was cancelled")
        return decode_rows(weight, start, stop)
