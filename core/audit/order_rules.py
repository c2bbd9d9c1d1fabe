"""Hints from order: rows of q and k against RoPE, gate and up, squares on their side, layers in another's place.

All are read from the levels of rows and columns. A trained model's residual channels have levels of their own, which
every matrix that reads or writes the residual shows; so do the pairs of channels that RoPE turns together.
Source: prototypes measured on SmolLM2 135M, Gemma 3 270M and stories260K; the figures stand at the limits below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from core.audit.finding import Strength
from core.audit.key_rules import arch_name, arch_number
from core.audit.level_rules import siblings
from core.audit.profiles import Profile
from core.audit.rule import Rule, Seen, Spot
from core.formats.architectures import ARCHS, rope_row_order
from core.system.arrays import Floats, Floats32

LEAST_HEAD = 32          # channels of a head below which pairs tell nothing
FILE_ORDER = 0.3         # median order of all q and k that makes the file's order known
ROW_ORDER = 0.25         # of that: below it one tensor stands in the other order; SmolLM2: 0.27 at least, 0.25 at most
OTHER_ORDER = (0.2, -0.4)  # of all, as stored and less what the rows would have in the other order: another file's
TRANSPOSED = -0.3        # contrast of rows and columns with the family's
GATE_FILE, GATE_UP = -0.3, 0.2
LAYER_GAIN = 0.3         # similarity of neighbours that an exchange of two layers wins back
LEAST_LAYERS = 6
LEAST_ORDER = 8          # layers below which neighbours tell nothing
RESIDUAL = (             # tensors whose columns, or rows, are the residual's channels
    ("attn_norm.weight", "values"), ("ffn_norm.weight", "values"), ("attn_q.weight", "cols"), ("attn_k.weight", "cols"),
    ("attn_v.weight", "cols"), ("ffn_gate.weight", "cols"), ("ffn_up.weight", "cols"), ("attn_output.weight", "rows"),
    ("ffn_down.weight", "rows"))


def logs(x: Floats32 | None) -> Floats:
    """Logarithms of levels, in float64; of none, nothing."""
    return np.log(np.maximum(np.abs(np.asarray(x, np.float64)), 1e-9)) if x is not None else np.zeros(0)


def corr(a: Floats, b: Floats) -> float:
    """Correlation; 0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def row_order(rows: Floats32, head: int) -> float:
    """Above 0: the pairs that RoPE turns stand side by side; below: half a head apart. Each pair's rows are alike, and
    from pair to pair the level runs smoothly."""
    found = []
    for h in logs(rows).reshape(-1, head):
        pairs = ((h[0::2], h[1::2]), (h[:head // 2], h[head // 2:]))
        alike = [corr(a, b) for a, b in pairs]
        smooth = [corr((a + b)[1:], (a + b)[:-1]) for a, b in pairs]
        found.append(alike[0] - alike[1] + smooth[0] - smooth[1])
    return float(np.mean(found))


def _row_orders(seen: Seen) -> Mapping[str, tuple[float, float]]:
    """The order of each q and k as stored, and as it would be were its rows half a head apart and sorted now."""
    found = {}
    for role in ("attn_q.weight", "attn_k.weight"):
        for layer, p in siblings(seen, is_matrix=True).get(role, {}).items():
            head = arch_number(seen.file, "attention.key_length", layer) or 0
            if p.rows is not None and head >= LEAST_HEAD and head % 2 == 0 and len(p.rows) % head == 0:
                sorted_R = p.rows[rope_row_order(len(p.rows), head, "halves")]
                found[p.weight.name] = row_order(p.rows, head), row_order(sorted_R, head)
    return found


def _rope(seen: Seen) -> Iterator[Spot]:
    orders = _row_orders(seen)
    family = ARCHS.get(arch_name(seen.file))
    if not orders or family is None or family.pairing == "none":
        return
    usual = float(np.median([order for order, _ in orders.values()]))
    other = usual - float(np.median([order for _, order in orders.values()]))
    is_adjacent = usual > FILE_ORDER and other > 0
    if is_adjacent if family.pairing == "halves" else usual < OTHER_ORDER[0] and other < OTHER_ORDER[1]:
        yield Spot(None, other, words={"what": "the rows of q and k of all layers", "other": f"{family.pairing} "
                                       f"pairs, which {arch_name(seen.file)} has"})
    for name, (order, _) in orders.items() if is_adjacent and family.pairing == "adjacent" else ():
        if order < ROW_ORDER * usual:
            yield Spot(name, order, words={"what": f"the rows of {name}", "other": f"the order of the file's other q "
                                           f"and k ({usual:.2g})"})


def _gate_up(seen: Seen) -> Iterator[Spot]:
    gates, ups, downs = (siblings(seen, is_matrix=True).get(f"ffn_{n}.weight", {}) for n in ("gate", "up", "down"))
    layers = [i for i in gates if i in ups and i in downs and gates[i].weight.shape == ups[i].weight.shape]
    if len(layers) < LEAST_LAYERS:
        return
    more = np.array([corr(logs(gates[i].rows), logs(downs[i].cols)) - corr(logs(ups[i].rows), logs(downs[i].cols))
                     for i in layers])
    if float(np.median(more)) > GATE_FILE:
        return
    for i, found in zip(layers, more, strict=True):
        if found > GATE_UP:
            yield Spot(gates[i].weight.name, float(found), words={"layer": i, "usual": float(np.median(more))})


def _centred(x: Floats) -> Floats:
    return np.asarray(x - x.mean())


def _transposed(seen: Seen) -> Iterator[Spot]:
    """A square matrix whose rows match what its siblings have in columns."""
    for same in siblings(seen, is_matrix=True).values():
        square = {i: p for i, p in same.items() if len(p.weight.shape) == 2 and p.weight.shape[0] == p.weight.shape[1]}
        if len(square) < LEAST_LAYERS:
            continue
        rows, cols = (np.stack([_centred(logs(getattr(p, side))) for p in square.values()])
                      for side in ("rows", "cols"))
        for k, p in enumerate(square.values()):
            others = [j for j in range(len(rows)) if j != k]
            row, col = np.median(rows[others], 0), np.median(cols[others], 0)
            contrast = corr(rows[k], row) + corr(cols[k], col) - corr(rows[k], col) - corr(cols[k], row)
            if contrast < TRANSPOSED:
                yield Spot(p.weight.name, contrast)


def similarity(seen: Seen) -> Floats:
    """How alike the residual's channels look from each pair of layers, less what all have: [L, L]; [0, 0] of none."""
    found = []
    n_layer = 1 + max((i for same in siblings(seen, True).values() for i in same), default=-1)
    for role, side in RESIDUAL:
        same: Mapping[int, Profile] = siblings(seen, is_matrix=side != "values").get(role, {})
        if len(same) != n_layer or len({p.weight.shape for p in same.values()}) != 1:
            continue
        levels = np.stack([logs(getattr(same[i], side)) for i in range(n_layer)])
        levels -= levels.mean(0)
        levels -= levels.mean(1, keepdims=True)
        levels /= np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-12)
        found.append(levels @ levels.T)
    return np.asarray(np.mean(found, 0)) if found else np.zeros((0, 0))


def best_exchange(alike: Floats) -> tuple[float, int, int]:
    """The two layers whose exchange makes neighbours most alike, and how much it wins."""
    n, best, order = len(alike), (0.0, 0, 0), np.arange(len(alike))
    for i in range(n):
        for j in range(i + 1, n):
            at = sorted({k for k in (i - 1, i, j - 1, j) if 0 <= k < n - 1})
            before = sum(alike[order[k], order[k + 1]] for k in at)
            order[i], order[j] = j, i
            gain = float(sum(alike[order[k], order[k + 1]] for k in at) - before)
            order[i], order[j] = i, j
            best = max(best, (gain, i, j))
    return best


def _layers(seen: Seen) -> Iterator[Spot]:
    alike = similarity(seen)
    if len(alike) < LEAST_ORDER:
        return
    gain, i, j = best_exchange(alike)
    if gain > LAYER_GAIN:
        yield Spot(None, gain, words={"i": i, "j": j}, layer=i)


ORDER_RULES = (
    Rule("row_order", Strength.HINT, _rope, "{what} do not stand in {other}: {measured:.2g}",
         "the rows of q and k stand as RoPE turns them: a pair's rows are alike"),
    Rule("gate_up", Strength.HINT, _gate_up,
         "gate and up of layer {layer} look exchanged: rows of gate go with the columns of down ({measured:.2g}; other "
         "layers {usual:.2g})", "the rows of up, more than those of gate, have the levels of the columns of down"),
    Rule("transposed", Strength.HINT, _transposed,
         "{tensor} looks transposed: its rows match what its siblings have in columns (contrast {measured:.2g})",
         "a square weight has the residual's channels where its siblings have them"),
    Rule("layer_order", Strength.HINT, _layers,
         "layers {i} and {j} look exchanged: neighbours would be more alike by {measured:.2g}",
         "a layer is more like its neighbours than like others"),
)
