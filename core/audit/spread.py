"""Say how a weight's level and spread stand beside the same weight of other layers, from a few rows of each.

Shapes: ROWS rows of each tensor, evenly apart; of a vector all. A figure for reading, no finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.audit.blocks import n_rows
from core.audit.rule import layer_of, role_of
from core.formats.model_file import ModelFile
from core.kernels.cpu.decoding import decode_rows
from core.quant.weight import Weight

ROWS = 16


@dataclass(frozen=True, slots=True)
class Spread:
    """Level (root mean square) of a weight and the least, middle and largest of its siblings'.

    z: robust z of its logarithm among them, None where they are fewer than three. levels: by layer, its own too.
    """

    level: float
    least: float
    middle: float
    largest: float
    n_sibling: int
    z: float | None
    levels: tuple[tuple[int, float], ...] = ()


def weight_spread(file: ModelFile, name: str) -> Spread | None:
    """Measure a tensor of a layer beside its siblings; None where it has none."""
    layer = layer_of(name)
    same = [w for n, w in file.weights.items() if layer is not None and role_of(n) == role_of(name) and n != name
            and layer_of(n) is not None]
    if name not in file.weights or not same:
        return None
    levels = {w.name: _level(w) for w in (file.weights[name], *same)}
    level, others = levels[name], np.array([levels[w.name] for w in same])
    logs = np.log(np.maximum([level, *others], 1e-30))
    off = logs - np.median(logs)
    middle = 1.4826 * float(np.median(np.abs(off)))
    z = float(off[0]) / max(middle, 1e-3) if len(same) > 2 else None
    return Spread(level, float(others.min()), float(np.median(others)), float(others.max()), len(same), z,
                  tuple(sorted((layer_of(n) or 0, found) for n, found in levels.items())))


def _level(weight: Weight) -> float:
    if len(weight.shape) < 2:
        values = decode_rows(weight, 0, weight.shape[0] if weight.shape else 1)
    else:
        rows = np.unique(np.linspace(0, n_rows(weight) - 1, ROWS).astype(int))
        values = torch.cat([decode_rows(weight, int(r), int(r) + 1) for r in rows])
    return float(values.double().square().mean().sqrt())
