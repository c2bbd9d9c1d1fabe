"""Compare what two files say before any activation: hyper-parameters, then weights, as decoded. No verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from core.formats.model_file import ModelFile
from core.model.arch import Arch
from core.model.stages import Place
from core.quant.dequantize import decode_rows
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

ROOM = 2.0  # over the types' error: heavier tails than normal cost up to 1.5 times (student-5, laplace, channels)
ROW_ROOM = 3.0  # of the worst row of a matrix: up to 1.65 times there
FAINT = 0.1  # of the root mean square row: a row fainter than that is measured against it, not against itself
CHUNK_WEIGHTS = 1 << 22

# field of Arch -> the key of the file that says it
KEYS = {
    "eps": "attention.layer_norm_rms_epsilon", "n_head": "attention.head_count", "n_kv_head": "attention.head_count_kv",
    "head_dim": "attention.key_length", "base": "rope.freq_base", "dim": "rope.dimension_count", "pairing": "rope_type",
    "scaling": "rope.scaling.type", "factor": "rope.scaling.factor", "attention_factor": "rope.scaling.attn_factor",
    "original_context": "rope.scaling.original_context_length", "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow", "qk_norm": "general.architecture", "name": "general.architecture",
}


# field of Arch -> the stage of layer 0 that reads it first; those of Rope are read by q_rope
READ_BY = {"eps": "attn_norm", "n_head": "q_rope", "n_kv_head": "q_rope", "head_dim": "q_rope", "qk_norm": "q_rope"}

# field of Rope -> the scalings that read it; a context length alone changes nothing
SCALED = {"factor": {"linear", "yarn"}, "original_context": {"yarn"}, "beta_fast": {"yarn"}, "beta_slow": {"yarn"}}


@dataclass(frozen=True, slots=True)
class KeyDiff:
    """One hyper-parameter that is not the same on both sides. place: where it is read first, None if not known."""

    sentence: str
    place: Place | None


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """One tensor that is not the same on both sides.

    relative: |B - A| / |A| of the decoded values. bound: what the rounding of both types leaves.
    """

    name: str
    quant_a: str
    quant_b: str
    relative: float
    bound: float | None  # None: the same type, or a type whose error nobody knows: nothing explains it
    row: int  # the row furthest off
    row_relative: float = 0.0  # |B - A| / |A| of that row
    is_equal: bool = False     # the decoded values are, and only the type differs

    @property
    def sentence(self) -> str:
        """What differs, in words."""
        if "absent" in (self.quant_a, self.quant_b):
            return f"{self.name} is only in {'B' if self.quant_a == 'absent' else 'A'}"
        if self.is_equal:
            return f"{self.name} has equal values, {self.quant_a} in A and {self.quant_b} in B"
        rounding = f"; their rounding leaves {self.bound:.2g}" if self.bound is not None else ""
        row = "" if self.is_explained else f", most in row {self.row}"
        return (f"{self.name} differs by {self.relative:.2g} relative ({self.quant_a} in A, {self.quant_b} in B"
                f"{rounding}{row})")

    @property
    def is_unmeasured(self) -> bool:
        """Whether it is there in two types, the error of one of which nobody knows."""
        return self.bound is None and self.quant_a != self.quant_b and "absent" not in (self.quant_a, self.quant_b)

    @property
    def is_known_fault(self) -> bool:
        """Whether it looks like a known fault."""
        return False

    @property
    def is_explained(self) -> bool:
        """Whether the types' rounding is enough to explain it, in the whole tensor and in its worst row."""
        if self.bound is None:
            return self.is_equal
        return self.relative <= ROOM * self.bound and self.row_relative <= ROW_ROOM * self.bound


def key_diffs(a: Arch, b: Arch) -> list[KeyDiff]:
    """Name each hyper-parameter that differs and both values; sizes are not among them: other sizes cannot be
    compared.
    """
    return saved_key_diffs(asdict(a), asdict(b))


def saved_key_diffs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[KeyDiff]:
    """The same of hyper-parameters as a bundle holds them, by the fields of Arch and Rope; what one lacks is left out.

    Floats are compared as float32, which is how GGUF keeps what .apr writes as decimals.
    """
    ropes = [rope if isinstance(rope := side.get("rope"), Mapping) else {} for side in (a, b)]
    scalings = {rope.get("scaling") for rope in ropes}
    found = []
    for left, right, is_rope in [(a, b, False), (ropes[0], ropes[1], True)]:
        for name in [n for n in left if n in right and n in KEYS]:
            x, y = (np.float32(v) if isinstance(v, float) else v for v in (left[name], right[name]))
            if x != y and scalings & SCALED.get(name, scalings):
                stage = "q_rope" if is_rope else READ_BY.get(name)
                said = (str(v).removesuffix(".0") for v in (x, y))  # float32 as short as it is
                place = (0, stage) if stage else None
                found.append(KeyDiff("{} is {} in A and {} in B".format(KEYS[name], *said), place))
    return found


def weight_diffs(a: ModelFile, b: ModelFile, cancelled: IsCancelled) -> list[WeightDiff]:
    """List the tensors of other decoded values or of another type, in A's order; a tied head as its own tensor."""
    found = []
    for name in dict.fromkeys([*a.weights, *b.weights]):
        left, right = _tensor(a, name), _tensor(b, name)
        if left is None or right is None:
            quant_a, quant_b = (w.quant if w else "absent" for w in (left, right))
            found.append(WeightDiff(name, quant_a, quant_b, math.inf, None, 0))
        elif left.quant != right.quant or not np.array_equal(left.data, right.data):
            diff = _decoded_diff(name, left, right, cancelled)
            found += [diff] if not diff.is_equal or left.quant != right.quant else []
    return found


def _tensor(file: ModelFile, name: str) -> Weight | None:
    return file.weights.get("token_embd.weight" if name == "output.weight" and name not in file.weights else name)


def _decoded_diff(name: str, a: Weight, b: Weight, cancelled: IsCancelled) -> WeightDiff:
    """Compare two tensors row by row, decoded; a value that is not finite on one side only is infinitely far."""
    n_row = a.shape[0]
    step = max(1, CHUNK_WEIGHTS // (a.shape[-1] if len(a.shape) > 1 else 1))
    lost = 0.0 if a.quant == b.quant else sum((QUANTS[w.quant].half_steps * 2.0**-25) ** 2 for w in (a, b))
    gap_sum = size_sum = 0.0
    is_equal = True
    worst, row = -1.0, 0
    for start in range(0, n_row, step):
        if cancelled():
            break
        x, y = (decode_rows(w, start, min(start + step, n_row)).double().flatten(1) if len(w.shape) > 1
                else decode_rows(w, start, min(start + step, n_row)).double()[:, None] for w in (a, b))
        same_bad = (torch.isnan(x) & torch.isnan(y)) | (x == y)
        gap_R = torch.where(same_bad, 0.0, x - y).square().nan_to_num(nan=math.inf, posinf=math.inf).sum(1)
        is_equal &= not float(gap_R.sum())
        gap_R = (gap_R - lost * x.shape[1]).clamp(min=0.0)
        size_R = x.nan_to_num(0, 0, 0).square().sum(1)
        gap_sum, size_sum = gap_sum + float(gap_R.sum()), size_sum + float(size_R.sum())
        off_R = gap_R / size_R.clamp(min=max(FAINT**2 * float(size_R.mean()), 1e-300))
        if float(off_R.max()) > worst:
            worst, row = float(off_R.max()), start + int(off_R.argmax())
    relative = math.sqrt(gap_sum / size_sum) if size_sum else math.inf if gap_sum else 0.0
    errors = [e for e in (QUANTS[w.quant].error for w in (a, b)) if e is not None]
    bound = math.hypot(*errors) if a.quant != b.quant and len(errors) == 2 else None
    return WeightDiff(name, a.quant, b.quant, relative, bound, row, math.sqrt(worst) if len(a.shape) > 1 else 0.0,
                      is_equal)
