"""Describe a tensor whose values lie elsewhere: rows in another order, another layer's, transposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.audit.weights.cousins import cousin_of, equals_in, is_transposed
from core.audit.weights.description import Description, DiffKind, Pair
from core.audit.weights.rounding_slope import Survey
from core.audit.weights.row_order import match_rows, rope_order, say_order
from core.audit.weights.survey import chunks, read_rows, row_shape
from core.system.cancel import IsCancelled


def moved(pair: Pair, found: Survey, odd: Sequence[int], cancelled: IsCancelled) -> Description | None:
    """Find the values of one side elsewhere in the other; None where they are not. odd: the rows that differ."""
    for look in (_moved_values, _moved_rows, _elsewhere, _turned):
        told = look(pair, found, odd, cancelled)
        if told is not None:
            return told
    return None


def _moved_values(pair: Pair, found: Survey, odd: Sequence[int], cancelled: IsCancelled) -> Description | None:
    """The same values of a vector in another order."""
    if row_shape(pair.a)[0] != 1:
        return None
    x, y = (read_rows(w, 0, 1)[0] for w in (pair.a, pair.b))
    n, room = len(x), pair.tolerance * float(x.square().mean().sqrt())

    def is_order(order: Tensor) -> bool:
        return bool(((y - x[order]).abs() <= room).all())

    for head in pair.heads:
        halves = rope_order(n, head)
        for order in () if halves is None else (halves, halves.argsort()):
            if is_order(order):
                told = say_order({i: int(j) for i, j in enumerate(order)}, n, pair.heads)
                return None if told is None else Description(DiffKind.ROPE_ORDER, told[1])
    changed = ((y - x).abs() > room).nonzero()[:, 0]
    if len(changed) and len(changed) % 2 == 0:
        order = torch.arange(n)
        order[changed] = changed.roll(len(changed) // 2)
        if is_order(order):
            told = say_order({int(i): int(order[i]) for i in changed}, n, pair.heads)
            if told is not None:
                return Description(DiffKind.REORDERED, told[1].replace("row", "element"))
    for step in (1, -1):
        if is_order(torch.arange(n).roll(step)):
            return Description(DiffKind.SHIFTED, f"shifted by {step:+d} element")
    return None


def _moved_rows(pair: Pair, found: Survey, odd: Sequence[int], cancelled: IsCancelled) -> Description | None:
    told = say_order(match_rows(pair.a, pair.b, odd, cancelled), len(found.rows.aa), pair.heads)
    if told is None:
        return None
    kinds = {"rope": DiffKind.ROPE_ORDER, "shifted": DiffKind.SHIFTED, "reordered": DiffKind.REORDERED}
    return Description(kinds[told[0]], told[1], odd[0])


def _elsewhere(pair: Pair, found: Survey, odd: Sequence[int], cancelled: IsCancelled) -> Description | None:
    """One side's tensor under another name in the other file."""
    rows = odd or range(len(found.rows.aa))
    name = pair.b.name
    there = cousin_of(pair.b, pair.file_a, rows, pair.tolerance)
    if there is not None:
        mirror = pair.file_b.weights.get(there)
        if mirror is not None and equals_in(pair.a, mirror, rows, pair.tolerance):
            return Description(DiffKind.COUSIN, f"exchanged with {there}")
        twin = mirror is not None and equals_in(pair.b, mirror, rows, pair.tolerance)
        text = f"B's is equal to {_layer_text(name, there)} of A"
        return Description(DiffKind.COUSIN, text, side="B" if twin else None)
    here = cousin_of(pair.a, pair.file_b, rows, pair.tolerance)
    if here is None:
        return None
    twin = here in pair.file_a.weights and equals_in(pair.a, pair.file_a.weights[here], rows, pair.tolerance)
    return Description(DiffKind.COUSIN, f"A's is equal to {_layer_text(name, here)} of B", side="A" if twin else None)


def _layer_text(name: str, other: str) -> str:
    mine, theirs = name.split("."), other.split(".")
    same = mine[0] == theirs[0] == "blk" and mine[2:] == theirs[2:]
    return f"layer {theirs[1]}'s" if same else other


def _turned(pair: Pair, found: Survey, odd: Sequence[int], cancelled: IsCancelled) -> Description | None:
    if len(odd) * 2 < len(found.rows.aa):
        return None

    def columns(of: Sequence[int]) -> Tensor:
        return torch.cat([c.x[:, list(of)] for c in chunks(pair.a, pair.b, cancelled)])

    if not is_transposed(pair.a, pair.b, columns, pair.tolerance) or cancelled():
        return None
    return Description(DiffKind.TRANSPOSED, "B is A transposed")
