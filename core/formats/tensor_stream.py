"""A tensor on its way into a file: type and shape known, bytes in pieces. Not a weight of an open file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes

_PIECE = 16 << 20


@dataclass(frozen=True, slots=True)
class TensorStream:
    """One tensor to write. pieces yields its bytes in order, so that a tensor larger than memory can be written."""

    name: str  # GGUF's
    quant: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Bytes]]

    @property
    def size_bytes(self) -> int:
        """Size of all pieces together."""
        return tensor_bytes(QUANTS[self.quant], self.shape)


def passthrough(weight: Weight) -> TensorStream:
    """Pack a weight's bytes as they are."""
    def pieces() -> Iterator[Bytes]:
        for at in range(0, len(weight.data), _PIECE):
            yield weight.data[at : at + _PIECE]

    return TensorStream(weight.name, weight.quant, weight.shape, pieces)
