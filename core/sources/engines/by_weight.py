"""Say which stage an engine's product or norm makes, by the tensor that it reads, for every kind of layer.

Engines name their nodes and modules each in their own way, and the tensors alike. Not here: how an engine is watched.
Shape letters: T tokens, E experts, K chosen, F channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from core.model.arch import Arch
from core.model.layers import Layer, Node
from core.model.stages import PREVIOUS, STAGES, Place
from core.system.arrays import Floats32

SUFFIXES = (".weight", ".bias")
LAST = ("norm", "latent", "mixture", "residual", "experts")  # the value is what the last tensor's node makes

Names = tuple[str, ...]
Width = Callable[[Place], int | None]


@dataclass(frozen=True, slots=True)
class StagesByTensor:
    """tensors: of a place, those whose nodes' values, joined, it is. places: of a tensor, those that it makes.

    A tensor has no suffix here: its product and its bias are one. Several places of one tensor divide its value, in
    order. inputs: of a tensor, the place that its node reads, where one alone is known to be.
    """

    tensors: Mapping[Place, Names]
    places: Mapping[str, tuple[Place, ...]]
    inputs: Mapping[str, Place]


def stages_by_tensor(arch: Arch, names: frozenset[str]) -> StagesByTensor:
    """Walk every layer's nodes. names: of the file's tensors."""
    bare = {strip(name) for name in names}
    tensors: dict[Place, Names] = {(None, "final_norm"): (strip(arch.out_norm),)}
    if "token_embd_norm" in bare and strip(arch.out_norm) != "token_embd_norm":
        tensors[None, "embedding"] = ("token_embd_norm",)
    elif arch.embed_scale == 1 and "position_embd" not in bare:
        tensors[None, "embedding"] = ("token_embd",)
    inputs: dict[str, Place] = {}
    for layer in arch.layers:
        for stage, node in layer.nodes.items():
            made = _made_by(layer, stage, node, bare)
            if made:
                tensors[layer.index, stage] = made
                read = _read(layer, stage, node)
                inputs |= dict.fromkeys(made, read) if read is not None else {}
    places: dict[str, tuple[Place, ...]] = {}
    for place, made in tensors.items():
        for name in made:
            places[name] = (*places.get(name, ()), place)
    return StagesByTensor(tensors, places, inputs)


def strip(name: str) -> str:
    """A tensor's name without .weight or .bias."""
    return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)


def usual_stages(n_layer: int) -> StagesByTensor:
    """What stages_by_tensor says of the usual decoder, of which no file is at hand."""
    tensors: dict[Place, Names] = {}
    inputs: dict[str, Place] = {}
    for layer, stage in [(i, s) for i in (None, *range(n_layer)) for s in STAGES if s.whole == (i is None)]:
        if stage.weights and stage.operation in ("norm", "linear", "lookup") and not stage.special:
            prefix = "" if layer is None else f"blk.{layer}."
            tensors[layer, stage.name] = made = tuple(prefix + name for name in stage.weights)
            if stage.inputs != (PREVIOUS,) and len(stage.inputs) == 1:
                inputs |= dict.fromkeys(made, (layer, stage.inputs[0]))
    return StagesByTensor(tensors, {name: (place,) for place, names in tensors.items() for name in names}, inputs)


def join(by: StagesByTensor, width: Width, values: Mapping[str, Floats32]) -> dict[Place, Floats32]:
    """Make the places of the tensors' values [T, ...]: joined, divided, and only where the width is the stage's.

    width: channels of a place; None where that is not known.
    """
    found: dict[Place, Floats32] = {}
    for place, names in by.tensors.items():
        if not all(name in values for name in names):
            continue
        value = np.concatenate([values[name] for name in names], 1) if len(names) > 1 else values[names[0]]
        sharing = by.places[names[0]]
        if len(sharing) > 1:
            at = sharing.index(place)
            value = np.split(value, len(sharing), -1)[at] if value.shape[-1] % len(sharing) == 0 else value
        value = value.reshape(len(value), -1)
        if width(place) in (None, value.shape[1]):
            found[place] = value
    return found


def sort_experts(value_TKF: Floats32, id_TK: np.ndarray) -> Floats32:
    """Put what the chosen experts gave in the order of their ids."""
    order_TK = np.argsort(id_TK, 1, kind="stable")
    return np.take_along_axis(value_TKF, order_TK[..., None], 1)


def dense_weights(weight_TK: Floats32, id_TK: np.ndarray, n_expert: int) -> Floats32:
    """The weights of the chosen experts as [T, E], 0 where not chosen."""
    found = np.zeros((len(weight_TK), n_expert), np.float32)
    np.put_along_axis(found, id_TK, weight_TK, 1)
    return found




def _made_by(layer: Layer, stage: str, node: Node, bare: set[str]) -> Names:
    names = tuple(layer.prefix + name for name in node.weights if layer.prefix + name in bare)
    if node.operation == "linear":
        return names
    if node.operation == "rope":
        a = layer.attention
        return names[-1:] if a is not None and a.norm_after_rope and a.temperature is None else ()
    return names[-1:] if node.operation in LAST else ()


def _read(layer: Layer, stage: str, node: Node) -> Place | None:
    """The place that a product or a norm reads: the layer's own stage, or the residual stream before the layer."""
    if node.operation not in ("linear", "norm", "experts") or (
            node.operation != "experts" and len(node.inputs) != 1):
        return None
    name = node.inputs[0]
    if name != PREVIOUS:
        return layer.index, name
    return (layer.index - 1, "output") if layer.index else (None, "embedding")
