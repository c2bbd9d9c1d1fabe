"""A stage with its right value, and what that was made from: what a planted fault, or a guess at one, may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from core.kernels.cpu.decoding import decode_rows
from core.model.layers import Attention, Layer, Node
from core.model.model import Model
from core.quant.weight import Weight


@dataclass(frozen=True, slots=True)
class StageInputs:
    """A stage's right value, and what it was made from. inputs: stage name -> value; "previous": the layer's input."""

    model: Model
    layer: int | None
    stage: str
    value: Tensor
    inputs: Mapping[str, Tensor]

    @property
    def node(self) -> Node:
        """What the stage is in its layer."""
        node = self.model.arch.node(self.layer, self.stage)
        assert node is not None, self.stage
        return node

    @property
    def of(self) -> Layer:
        """The layer; not of a whole-model stage."""
        assert self.layer is not None
        return self.model.arch.layers[self.layer]

    @property
    def attention(self) -> Attention:
        """The layer's attention."""
        assert self.of.attention is not None
        return self.of.attention

    @property
    def weights(self) -> tuple[str, ...]:
        """The stage's tensors that the file has."""
        return tuple(n for n in self.node.weights if f"{self._prefix}{n}.weight" in self.model.file.weights)

    @property
    def _prefix(self) -> str:
        return "" if self.layer is None else f"blk.{self.layer}."

    def input(self, index: int = 0) -> Tensor:
        """The stage's input of that index, in the value's float type."""
        return self.inputs[self.node.inputs[index]].to(self.value.dtype)

    def weight(self, name: str) -> Weight:
        """A tensor of this layer, or of the whole model."""
        return self.model.file.weight(self._prefix + name)

    def bias(self, name: str) -> Tensor | None:
        """A bias of this layer, in the value's float type."""
        found = self.model.vector(f"{self._prefix}{name}.bias")
        return None if found is None else found.to(self.value)

    def vector(self, name: str) -> Tensor:
        """A small tensor of this layer, in the value's float type."""
        return self.model.tensor(self._prefix + name).to(self.value)

    def rows(self, y: Tensor) -> Tensor:
        """The stage's own columns of a product that makes gate and up at once."""
        width = self.node.width
        return y if y.shape[-1] == width else y[:, :width] if self.stage.endswith("gate") else y[:, -width:]

    def matrix(self, name: str) -> Tensor:
        """A decoded weight [rows, cols], in the value's float type."""
        weight = self.weight(f"{name}.weight")
        if len(weight.shape) == 1:  # of one row, which a file may keep as a vector
            return self.vector(f"{name}.weight").view(1, -1)
        return decode_rows(weight, 0, weight.shape[0], self.value.device).to(self.value.dtype)


def full_name(inputs: StageInputs, name: str) -> str | None:
    prefix = "" if inputs.layer is None else inputs.of.prefix
    return next((n for n in (f"{prefix}{name}.weight", prefix + name) if n in inputs.model.file.weights), None)
