"""Hints from levels: a block far above its tensor, a tensor or a norm unlike its siblings in other layers.

Siblings: the tensors of one name in all layers. Each hint says its measured figure; a person weighs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from core.audit.finding import Strength
from core.audit.guarantees import Mask
from core.audit.key_rules import arch_name
from core.audit.profiles import Profile
from core.audit.proofs import alone, is_by_token
from core.audit.rule import Rule, Seen, Spot, layer_of, role_of
from core.system.arrays import Floats, Floats32

TRAINED = 1.3            # times the spread of row levels that random weights have: 0.95 to 1.05 of 51 random files;
                         # stories260K 1.6, SmolLM2 5.7, Gemma 3 270M 7.2
LEAST_SIBLINGS = 8
LEAST_Z = 8.0            # robust z of a tensor's level among its siblings, and among its neighbours
LEAST_FACTOR = 2.0       # and of the level itself, over the middle of its siblings
NORM_SHIFT = 0.5         # of the middle of its siblings' means
LEAST_SPREAD = 1e-3      # of a median deviation, lest equal siblings make any other one infinite
LOW = 0.05               # of all weights of those norms, so many may lie below
NO_ONE = -0.5            # and there where 1 + w was meant and w stands: Gemma 3 270M has 0.26, and would have -0.74
PLUS_ONE = ("gemma", "gemma2", "gemma3")  # families whose files hold 1 + w
BLOCK_LEVEL, BLOCK_GAP, BLOCK_ALONE = 4.0, 3.5, 64.0  # healthy models: gap 2.9 and level x gap 46 at most
COARSE = 0.8             # of all norms, cut to bfloat16: the rest were made otherwise


def is_trained(profiles: Mapping[str, Profile]) -> bool:
    """Whether the weights have a structure at all: rows of random ones differ only as chance makes them."""
    spreads = []
    for p in profiles.values():
        if p.rows is not None and len(p.rows) >= 16 and p.weight.shape[-1] >= 32 and (p.rows > 0).any():
            spreads.append(float(np.std(np.log(p.rows[p.rows > 0]))) * (2 * p.weight.shape[-1]) ** 0.5)
    return bool(spreads) and float(np.median(spreads)) > TRAINED


def siblings(seen: Seen, is_matrix: bool) -> Mapping[str, dict[int, Profile]]:
    """The profiles of each name in all layers, by layer, in order."""
    found = defaultdict[str, dict[int, Profile]](dict)
    for name in sorted(seen.profiles, key=lambda n: layer_of(n) or 0):
        layer, profile = layer_of(name), seen.profiles[name]
        if layer is not None and (profile.rows is not None) == is_matrix:
            found[role_of(name)][layer] = profile
    return found


def robust_z(x: Floats) -> Floats:
    """Distance from the median in units of the median deviation, as a standard deviation counts it."""
    off = x - np.median(x)
    return np.asarray(off / max(1.4826 * float(np.median(np.abs(off))), LEAST_SPREAD))


def from_neighbours(x: Floats) -> Floats:
    """Distance of each from the median of two before and two behind it."""
    return np.array([x[k] - np.median(np.r_[x[max(0, k - 2):k], x[k + 1:k + 3]]) for k in range(len(x))])


def unlike_siblings(x: Floats) -> Floats:
    """The smaller of both robust z: among all siblings, and among neighbours; the sign is the first's."""
    first, second = robust_z(x), from_neighbours(x)
    near = np.abs(second) / max(1.4826 * float(np.median(np.abs(second))), LEAST_SPREAD)
    return np.asarray(np.sign(first) * np.minimum(np.abs(first), near))


def _levels(seen: Seen) -> Iterator[Spot]:
    for same in siblings(seen, is_matrix=True).values():
        if len(same) < LEAST_SIBLINGS:
            continue
        level = np.log(np.array([max(p.rms, 1e-12) for p in same.values()]))
        factor, z = np.exp(level - np.median(level)), unlike_siblings(level)
        for i, p in enumerate(same.values()):
            if abs(z[i]) > LEAST_Z and not 1 / LEAST_FACTOR < factor[i] < LEAST_FACTOR and p.rms:
                yield Spot(p.weight.name, float(factor[i]), words={"z": abs(float(z[i])), "n": len(same)})


def _norms(seen: Seen) -> Iterator[Spot]:
    for role, same in siblings(seen, is_matrix=False).items():
        if len(same) < LEAST_SIBLINGS or "norm" not in role:
            continue
        middle = np.array([float(np.median(p.values)) for p in same.values() if p.values is not None])
        usual, z = float(np.median(middle)), unlike_siblings(middle)
        for i, p in enumerate(same.values()):
            if abs(z[i]) > LEAST_Z and abs(middle[i] - usual) > NORM_SHIFT * abs(usual):
                yield Spot(p.weight.name, float(middle[i]), words={
                    "usual": usual, "shift": float(middle[i]) - usual, "z": abs(float(z[i]))})


def _all_norms(seen: Seen) -> Iterator[Spot]:
    """The norms before attention and feed-forward of all layers: 1 was added where the family adds none, or not."""
    adds = arch_name(seen.file) in PLUS_ONE
    low = {role: float(np.quantile(np.concatenate([p.values for p in same.values() if p.values is not None]), LOW))
           for role, same in siblings(seen, is_matrix=False).items()
           if role in ("attn_norm.weight", "ffn_norm.weight") and len(same) >= LEAST_SIBLINGS}
    if low and (min(low.values()) < NO_ONE if adds else min(low.values()) >= 1):
        said = f"every {arch_name(seen.file)} has 1 added to them, and these look as if none was" if adds else (
            "1 may have been added to them")
        yield Spot(None, min(low.values()), words={"roles": " and ".join(sorted(low)), "said": said})


def _is_coarse(x: Floats32) -> bool:
    """Whether every value is a bfloat16, stored as float32."""
    return not (np.ascontiguousarray(x).view("<u4") & 0xFFFF).any()


def _norm_origin(seen: Seen) -> Iterator[Spot]:
    """Norms that were added to, or scaled, after the rest was cut to bfloat16; or the other way round."""
    norms = {n: p.values for n, p in seen.profiles.items()
             if p.values is not None and "norm" in n and n.endswith(".weight") and p.weight.quant == "F32"}
    coarse = {n: _is_coarse(x) for n, x in norms.items()}
    if len(norms) < LEAST_SIBLINGS or all(coarse.values()) or sum(coarse.values()) < COARSE * len(norms):
        return
    for name in (n for n, is_coarse in coarse.items() if not is_coarse):
        yield Spot(name, float(np.mean(norms[name])), words={"n": sum(coarse.values()), "of": len(norms)})


def _blocks(seen: Seen) -> Iterator[Spot]:
    for name, p in seen.profiles.items():
        lone = p.lone
        if lone is None or lone.level < BLOCK_LEVEL:
            continue
        if lone.gap > BLOCK_GAP or (lone.level * lone.gap > BLOCK_ALONE and lone.gap > BLOCK_GAP / 2):
            yield Spot(name, lone.level, lone.row, lone.block, {"gap": lone.gap})


def _column_runs(seen: Seen) -> Iterator[Spot]:
    for name, zero_C in _zero_columns(seen):
        yield from _column_spot(name, zero_C & ~alone(zero_C))


def _lone_columns(seen: Seen) -> Iterator[Spot]:
    found = dict(_zero_columns(seen))
    for name, zero_C in found.items():
        others = [c for n, c in found.items() if n != name and role_of(n) == role_of(name) and len(c) == len(zero_C)]
        yield from _column_spot(name, alone(zero_C) & ~np.any(others, 0) if others else alone(zero_C))


def _column_spot(name: str, zero_C: Mask) -> Iterator[Spot]:
    found = np.flatnonzero(zero_C)
    if len(found):
        yield Spot(name, float(len(found)), words={
            "column": int(found[0]), "more": f", and {len(found) - 1} more" if len(found) > 1 else ""})


def _zero_columns(seen: Seen) -> Iterator[tuple[str, Mask]]:
    """Each matrix with columns of zeros that a pruned neuron does not explain, and which."""
    for name, p in seen.profiles.items():
        if p.rows is None or p.cols is None or len(p.rows) < 16 or len(p.weight.shape) > 2 or is_by_token(name):
            continue
        zero_C = p.cols == 0
        if zero_C.any() and not zero_C.all():
            yield name, np.asarray(zero_C & ~_pruned(seen, name, len(p.cols)))


def _pruned(seen: Seen, name: str, n_col: int) -> Mask:
    """Columns of down that no neuron feeds: its row of up is zeros, too."""
    up = seen.profiles.get(name.replace("ffn_down", "ffn_up"))
    if "ffn_down" not in name or up is None or up.rows is None or len(up.rows) != n_col:
        return np.zeros(n_col, bool)
    return np.asarray(up.rows == 0)


COLUMN_RULES = (
    Rule("zero_columns", Strength.PROOF, _column_runs, "{tensor} column {column} is zeros{more}",
         "no columns of a weight, side by side, are zeros"),
    Rule("zero_column", Strength.HINT, _lone_columns, "{tensor} column {column} is zeros{more}",
         "no single column of a weight is zeros, but one that is so in other layers or was pruned"),
)
LEVEL_RULES = (
    Rule("block", Strength.HINT, _blocks,
         "{tensor} row {row}, block {block} is {measured:.3g} x its row's and its column's blocks, and {gap:.3g} x the "
         "next such", "no block stands far above every other of its tensor"),
    Rule("level", Strength.HINT, _levels,
         "{tensor} is {measured:.3g} x the level of its {n} siblings (robust z {z:.3g})",
         "a tensor has about the level of the same tensor in other layers"),
    Rule("norm", Strength.HINT, _norms,
         "{tensor} lies at {measured:.3g}, its siblings at {usual:.3g}: {shift:+.3g} (robust z {z:.3g})",
         "a norm's weights lie where those of other layers do"),
    Rule("norms", Strength.HINT, _all_norms,
         "{roles} of all layers lie above {measured:.2g} but for one in twenty weights: {said}",
         "norms of a trained model have weights on both sides of 1, or, stored as 1 + w, few below 0"),
    Rule("norm_origin", Strength.HINT, _norm_origin,
         "{tensor} is not of bfloat16 values, and {n} of {of} norms are: something was added to it, or it was scaled",
         "the norms of one file were stored alike before"),
)
