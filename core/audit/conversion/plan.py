"""What every tensor of a file must be, by its original: sources and transforms. It reads no values until asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from core.audit.conversion.merge import low_rank_deltas
from core.audit.conversion.mxfp4 import BLOCKS, SCALES, scales_of, take_pair
from core.audit.conversion.names import SAME_HEAD, is_left_out, layer_number, name_table, without_expert
from core.audit.conversion.original import Original
from core.audit.conversion.rope_tables import rope_tables
from core.audit.conversion.rules import split_of, steps_before, steps_of
from core.audit.conversion.sizes import Sizes, whole
from core.audit.conversion.steps import take
from core.formats.model_file import ModelFile
from core.quant.dequantize import decode_weight
from core.quant.weight import Weight

TIED = "token_embd.weight"
Find = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor of the file: its sources in the original (experts in order), and what is done to them.

    sources have one name where nothing is stacked. merge: how many times an adapter's delta is added.
    """

    name: str
    sources: tuple[str, ...]
    steps: tuple[str, ...] = ()
    merge: float = 1.0

    @property
    def is_copy(self) -> bool:
        """Whether the values are stored as they are."""
        return not self.steps and len(self.sources) == 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a file must hold. unknown: tensors of the original that no table names; left_out: those never written.

    computed: tensors that are made from the configuration.
    """

    original: Original
    sizes: Sizes
    expected: Mapping[str, Expected]
    unknown: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    computed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    deltas: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def build(self, item: Expected) -> Weight:
        """Make the tensor: the original's own bytes where it is a copy, else float32; raises DoesNotFit."""
        source = item.sources[0]
        if item.is_copy and not source.endswith(BLOCKS) and not (source in self.deltas and item.merge):
            return replace(self.original.weights[source], name=item.name)
        parts = [self._source(name, item.merge) for name in item.sources]
        values = torch.stack(parts) if len(parts) > 1 else parts[0]
        return as_weight(item.name, take(values, item.steps, self.sizes))

    def _source(self, name: str, merge: float) -> Tensor:
        weights = self.original.weights
        if name.endswith(BLOCKS):
            return take_pair(weights[name], weights.get(scales_of(name)))
        values = decode_weight(weights[name])
        delta = self.deltas.get(name)
        return values if delta is None else values + merge * delta


def as_weight(name: str, values: Tensor) -> Weight:
    """Float32 values as a weight."""
    flat = values.detach().to(torch.float32).contiguous().numpy()
    return Weight(name, "F32", tuple(values.shape), flat.reshape(-1).view(np.uint8))


def make_plan(original: Original, file: ModelFile, arch: str, sizes: Sizes) -> Plan:
    """Plan every tensor of a folder's original; of a model file, by equal names."""
    if original.model is not None:
        same = {name: Expected(name, (name,)) for name in original.weights}
        return Plan(original, sizes, same)
    find = name_table(arch, _n_layer(original, file, arch))
    sources: dict[tuple[str, tuple[str, ...]], list[tuple[int, str]]] = defaultdict(list)
    unknown, left_out = [], []
    for name in original.weights:
        if is_left_out(name) or _is_unwritten_layer(name, original, file):
            left_out.append(name)
            continue
        if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in original.weights:
            continue  # read with its blocks
        bare, expert = without_expert(name)
        targets = _targets(bare, arch, file, find)
        if not targets:
            unknown.append(name)
        for target in targets:
            if expert is not None or target not in sources:
                sources[target].append((expert or 0, name))
    expected: dict[str, Expected] = {}
    for (called, steps), found in sources.items():
        expected.setdefault(called, Expected(called, tuple(name for _, name in sorted(found)), steps))
    _tie(expected, original, file)
    return Plan(original, sizes, expected, tuple(unknown), tuple(left_out), rope_tables(sizes, arch),
                low_rank_deltas(original))


def _is_unwritten_layer(name: str, original: Original, file: ModelFile) -> bool:
    """Whether a tensor is of a layer after the last (multi-token prediction) that the file leaves out altogether."""
    layer, n = layer_number(name), whole(original.config.get("num_hidden_layers"))
    return bool(n and layer is not None and layer >= n and not any(w.startswith(f"blk.{layer}.") for w in file.weights))


def _n_layer(original: Original, file: ModelFile, arch: str) -> int:
    numbers = [n for name in original.weights if not is_left_out(name) and (n := layer_number(name)) is not None]
    told = file.keys.get(f"{arch}.block_count")
    return min(4096, max([told if isinstance(told, int) else 1, *(n + 1 for n in numbers)]))


def _targets(name: str, arch: str, file: ModelFile, find: Find) -> list[tuple[str, tuple[str, ...]]]:
    """GGUF names of one tensor of the original, each with its steps."""
    layer, split = layer_number(name), split_of(name, arch)
    prefix = f"blk.{layer}."
    if split is not None and layer is not None:
        joined = prefix + split.joined
        if not split.joined or joined not in file.weights:
            return [(prefix + _shared(part, name, prefix, file), (*steps, *steps_of(part, arch)))
                    for part, steps in split.parts]
        return [(joined, steps_of(split.joined, arch))]
    found = find(name)
    if found is None:
        return []
    role = found.split(".", 2)[2] if found.startswith("blk.") else found
    if found.startswith("blk."):
        found = prefix + _shared(role, name, prefix, file)
    bare = found.removesuffix(".weight")
    found = bare if found not in file.weights and bare in file.weights else found  # falcon-h1 writes ffn_norm so
    return [(found, (*steps_before(name, arch), *steps_of(role, arch)))]


def _shared(role: str, name: str, prefix: str, file: ModelFile) -> str:
    """A shared feed-forward is *_shexp where it stands beside experts."""
    if ".shared_mlp." not in name or f"{prefix}ffn_gate_inp.weight" not in file.weights:
        return role
    return role.replace(".weight", "_shexp.weight")


def _tie(expected: dict[str, Expected], original: Original, file: ModelFile) -> None:
    """A head that is the embedding: needed nowhere, and equal to it where either side has it."""
    head, embedding = expected.get("output.weight"), expected.get(TIED)
    if head is None and embedding is not None and "output.weight" in file.weights:
        expected["output.weight"] = replace(embedding, name="output.weight")
    elif head is not None and embedding is not None and "output.weight" not in file.weights:
        tied = original.config.get("tie_word_embeddings", head.sources[0] not in SAME_HEAD)
        one, other = (original.weights[item.sources[0]] for item in (head, embedding))
        if tied or (one.quant == other.quant and np.array_equal(one.data, other.data)):
            del expected["output.weight"]


def fit_shape(weight: Weight, shape: tuple[int, ...]) -> Weight:
    """A tensor in the file's shape where that only adds or drops dimensions of 1, or cuts a vector into rows."""
    same = [n for n in weight.shape if n != 1] == [n for n in shape if n != 1]
    is_vector = len([n for n in weight.shape if n != 1]) <= 1 and prod(weight.shape) == prod(shape)
    return replace(weight, shape=shape) if same or is_vector else weight
