"""Greedy decoding on a GPU from a captured graph: one launch a token, the numbers those of the uncaptured forward.

The forward is the same; only its cache has room for every position and knows the next one on the device. The first
step runs uncaptured (it compiles what is missing), the second is captured. It watches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from core.kernels.gpu.planes import LAYOUTS
from core.model.layers import Rope
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Cache, Model
from core.model.ops import rope_angles
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled

Start = Callable[[Tensor, Cache], ForwardRun]  # tokens [T] on the device -> a run of the forward


class RoomyCache(Cache):
    """Keys and values with room for n_max positions, allocated once; which is next is known on the device."""

    def __init__(self, model: Model, n_max: int) -> None:
        arch, rope = model.arch, model.arch.rope
        assert arch.is_usual
        self.next = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.here = self.next  # where the tokens of the running step go
        super().__init__(position=self.next)
        cos, sin = rope_angles(rope, 0, n_max, None if rope.factors is None else model.vector(rope.factors))
        self.cos, self.sin = cos.to(model.device, model.dtype), sin.to(model.device, model.dtype)
        shape = (n_max, model.arch.n_kv_head, model.arch.head_dim)
        for layer in range(model.arch.n_layer):
            self.keys[layer] = torch.zeros(shape, dtype=model.dtype, device=model.device)
            self.values[layer] = torch.zeros(shape, dtype=model.dtype, device=model.device)

    def begin(self, n_token: int) -> None:
        """Start a step of so many tokens."""
        self.here = self.next + torch.arange(n_token, device=self.next.device)

    def angles(self, model: Model, rope: Rope, n_token: int) -> tuple[Tensor, Tensor]:
        """Return RoPE's cos and sin for the next positions, as the model's rotate takes them."""
        return model.ops.angles(self.cos[self.here], self.sin[self.here], rope.pairing)

    def extend(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Put them in their places and return all the room."""
        self.keys[layer].index_copy_(0, self.here, k_TKH)
        self.values[layer].index_copy_(0, self.here, v_TKH)
        return self.keys[layer], self.values[layer]


def decode_by_graph(
    model: Model, start: Start, tokens: Sequence[int], n_token: int, cancelled: IsCancelled
) -> Iterator[int]:
    """Yield the likeliest next token n_token times; no step is captured where a weight must be brought for it."""
    cache = RoomyCache(model, len(tokens) + n_token)
    ids = torch.zeros(1, dtype=torch.int64, device=model.device)

    def step(feed: Tensor) -> None:
        logits = run_lockstep([start(feed, cache)], cancelled)[0]
        ids.copy_(likeliest(logits))
        cache.next.add_(len(feed))

    step(torch.tensor(tokens, device=model.device))
    yield int(ids)
    graph = None
    for i in range(1, n_token):
        if cancelled():  # a replay asks nobody
            raise Cancelled("the run was cancelled")
        if graph is None and i > 1 and is_capturable(model):
            graph = torch.cuda.CUDAGraph()
            beside = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call] # torch keeps one for all devices
            with torch.cuda.device(model.device), torch.cuda.graph(graph, stream=beside):
                step(ids)
        if graph is None:
            step(ids)
        else:
            graph.replay()
        yield int(ids)


def is_capturable(model: Model) -> bool:
    """Say whether a step brings nothing to its GPU: once each weight has been asked for, all of them stay there."""
    resident, matrices = model.resident, [w for w in model.file.weights.values() if len(w.shape) == 2]
    is_there = resident is not None and resident.is_whole and all(w.quant in LAYOUTS for w in matrices)
    return model.device.type == "cuda" and is_there


def likeliest(logits: Tensor) -> Tensor:
    """The token of the largest logit [1, V]; a NaN is the least likely."""
    return torch.nan_to_num(logits[0], nan=float("-inf")).argmax()
