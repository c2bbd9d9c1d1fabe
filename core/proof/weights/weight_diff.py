"""Compare what two files say before any activation: hyper-parameters, then weights, as decoded. No verdicts.

Whether rounding explains a weight: weights/rounding_slope.py. What a difference is in words: weights/describe_diff.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.audit.weights.describe_diff import describe, describe_absent, describe_shape
from core.audit.weights.description import Description, Pair
from core.audit.weights.rounding_slope import Survey, noise_between, survey
from core.formats.model_file import ModelFile
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

DESCRIBED = 8  # of many weights that differ, evenly: to describe one takes up to several readings of it

# field of Arch -> the key of the file that says it
KEYS = {
    "eps": "attention.layer_norm_rms_epsilon", "n_head": "attention.head_count", "n_kv_head": "attention.head_count_kv",
    "head_dim": "attention.key_length", "base": "rope.freq_base", "dim": "rope.dimension_count", "pairing": "rope_type",
    "scaling": "rope.scaling.type", "factor": "rope.scaling.factor", "attention_factor": "rope.scaling.attn_factor",
    "original_context": "rope.scaling.original_context_length", "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow", "qk_norm": "qk_norm of the architecture",
}


# field of Rope -> the scalings that read it; a context length alone changes nothing
SCALED = {"factor": {"linear", "yarn"}, "original_context": {"yarn"}, "beta_fast": {"yarn"}, "beta_slow": {"yarn"}}


@dataclass(frozen=True, slots=True)
class KeyDiff:
    """One hyper-parameter that is not the same on both sides."""

    key: str
    a: object
    b: object

    @property
    def sentence(self) -> str:
        """The key and both values: rope.freq_base is 100000 in A and 10000 in B."""
        return f"{self.key} is {_short(self.a)} in A and {_short(self.b)} in B"


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """One tensor that is not the same on both sides.

    relative: |B - A| / |A| of the decoded values. bound: what the rounding of both types leaves, None where nothing
    explains it. faults: what rounding does not do (see Survey). told: what the difference is; None where not described.
    """

    name: str
    quant_a: str
    quant_b: str
    relative: float
    bound: float | None
    row: int  # the row furthest off
    row_relative: float = 0.0  # |B - A| / |A| of that row
    faults: tuple[str, ...] = ()
    told: Description | None = None
    survey: Survey | None = field(default=None, repr=False)
    is_equal: bool = False  # the decoded values are, and only the type differs

    @property
    def is_unmeasured(self) -> bool:
        """Whether it is there in two types, the error of one of which nobody knows."""
        return self.bound is None and self.quant_a != self.quant_b and "absent" not in (self.quant_a, self.quant_b)

    @property
    def is_explained(self) -> bool:
        """Whether the types' rounding is enough to explain it: of the tensor, each row, each block, its columns."""
        return self.is_equal or (self.bound is not None and not self.faults)

    @property
    def sentence(self) -> str:
        """Its name, what the difference is, and both types where they differ."""
        types = f" ({self.quant_a} in A, {self.quant_b} in B)" if "absent" not in (self.quant_a, self.quant_b) and (
            self.quant_a != self.quant_b) else ""
        if self.is_equal:
            return f"{self.name}: equal values{types}"
        if self.told is not None:
            return f"{self.name}: {self.told.sentence}{types}"
        rounding = f"; their rounding leaves {self.bound:.2g}" if self.bound is not None else ""
        return f"{self.name}: differs by {self.relative:.2g} relative{types}{rounding}"


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[KeyDiff]:
    """List the hyper-parameters that differ; sizes are not among them: other sizes cannot be compared.

    a, b: by the fields of Arch, those of Rope under rope, as asdict or a bundle gives them; what one lacks is left out.
    Floats are compared as float32, which is how GGUF keeps what .apr writes as decimals.
    """
    ropes = [rope if isinstance(rope := side.get("rope"), Mapping) else {} for side in (a, b)]
    scalings = {rope.get("scaling") for rope in ropes}
    found = []
    for left, right in [(a, b), (ropes[0], ropes[1])]:
        for name in [n for n in left if n in right and n in KEYS]:
            x, y = (np.float32(v) if isinstance(v, float) else v for v in (left[name], right[name]))
            if x != y and scalings & SCALED.get(name, scalings):
                found.append(KeyDiff(KEYS[name], x, y))
    return found


def weight_diffs(a: ModelFile, b: ModelFile, cancelled: IsCancelled) -> list[WeightDiff]:
    """List the tensors of other decoded values or of another type, in A's order; a tied head as its own tensor."""
    found = []
    for name in dict.fromkeys([*a.weights, *b.weights]):
        if cancelled():
            break
        left, right = _tensor(a, name), _tensor(b, name)
        if left is None or right is None or left.shape != right.shape:
            quant_a, quant_b = (w.quant if w else "absent" for w in (left, right))
            told = describe_shape(left, right) if left and right else describe_absent(left is not None)
            found.append(WeightDiff(name, quant_a, quant_b, math.inf, None, 0, told=told))
        elif left.quant != right.quant or not np.array_equal(left.data, right.data):
            diff = _decoded_diff(name, left, right, cancelled)
            found += [diff] if not diff.is_equal or left.quant != right.quant else []
    return found


def described(
    diffs: Sequence[WeightDiff], a: ModelFile, b: ModelFile, heads: tuple[int, ...], cancelled: IsCancelled
) -> list[WeightDiff]:
    """Describe the weights that rounding does not explain: DESCRIBED of them, evenly, where there are more."""
    changed = [i for i, w in enumerate(diffs) if not w.is_explained and w.survey is not None]
    chosen = set(changed[::-(-len(changed) // DESCRIBED)]) if changed else set()
    return [_described(w, a, b, heads, cancelled) if i in chosen else w for i, w in enumerate(diffs)]


def _described(w: WeightDiff, a: ModelFile, b: ModelFile, heads: tuple[int, ...], cancelled: IsCancelled) -> WeightDiff:
    left, right = _tensor(a, w.name), _tensor(b, w.name)
    assert left is not None and right is not None and w.survey is not None
    told = describe(Pair(left, right, a, b, noise_between(left, right), heads), w.survey, cancelled)
    return replace(w, told=told)


def _tensor(file: ModelFile, name: str) -> Weight | None:
    return file.weights.get("token_embd.weight" if name == "output.weight" and name not in file.weights else name)


def _decoded_diff(name: str, a: Weight, b: Weight, cancelled: IsCancelled) -> WeightDiff:
    noise = noise_between(a, b)
    found = survey(a, b, noise, cancelled)
    row, worst = found.worst_row
    return WeightDiff(name, a.quant, b.quant, found.relative, noise.error or None, row,
                      worst if len(a.shape) > 1 else 0.0, found.faults, survey=found,
                      is_equal=not found.unlike and not bool(found.rows.gg.any()))


def _short(value: object) -> str:
    """A value as short as it is: 100000, not 1e+05 or 100000.0."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) < 1e9
    return str(int(float(value))) if whole else str(value)  # type: ignore[arg-type]
