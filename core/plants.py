"""Plant a bug in a value, as a wrong kernel would leave it: a table of kinds. The forward knows nothing of it; the tap does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import UsageError
from core.forward import Tap
from core.stages import STAGES, Place, stage_named
from core.tap import patch

EVERY = tuple(s.name for s in STAGES)


@dataclass(frozen=True, slots=True)
class Plant:
    """One kind of bug: what it does to a value [T, width], and the stages where it can stand."""

    change: Callable[[Tensor], Tensor]
    stages: tuple[str, ...]
    says: str


def _nan(x: Tensor) -> Tensor:
    out = x.clone()
    out[-1, 0] = float("nan")
    return out


PLANTS = {
    "shift": Plant(lambda x: torch.roll(x, 1, -1), EVERY, "every channel one place on"),
    "negate": Plant(lambda x: -x, EVERY, "the sign turned"),
    "swap": Plant(lambda x: torch.roll(x, x.shape[-1] // 2, -1), EVERY, "first and second half exchanged"),
    "scale": Plant(lambda x: x * 1.5, EVERY, "times 1.5"),
    "nan": Plant(_nan, EVERY, "NaN at the last token, channel 0"),
}


def plant_table() -> str:
    """List the kinds, a line each."""
    return "\n".join(f"  {kind}: {p.says}" for kind, p in PLANTS.items())


def parse_plant(text: str, n_layer: int) -> tuple[str, Place]:
    """Read KIND@LAYER.STAGE (KIND@STAGE for a whole-model stage); UsageError shows the table."""
    kind, _, where = text.partition("@")
    layer_text, dot, name = where.rpartition(".")
    if kind not in PLANTS or not where:
        raise UsageError(f"--plant {text}: no such kind. Write KIND@LAYER.STAGE with one of:\n{plant_table()}")
    stage = stage_named(name)
    if stage.name not in PLANTS[kind].stages:
        raise UsageError(f"--plant {text}: {kind} does not apply to {stage.name}; it does to {', '.join(PLANTS[kind].stages)}.")
    if stage.whole:
        if dot:
            raise UsageError(f"--plant {text}: {stage.name} belongs to the whole model; write {kind}@{stage.name}.")
        return kind, (None, stage.name)
    if not layer_text.isdigit() or int(layer_text) >= n_layer:
        raise UsageError(f"--plant {text}: {layer_text!r} is not a layer; the model has layers 0 to {n_layer - 1}.")
    return kind, (int(layer_text), stage.name)


def plant_tap(text: str, n_layer: int) -> Tap:
    """Return the tap that plants the named bug."""
    kind, place = parse_plant(text, n_layer)
    return patch({place: PLANTS[kind].change})
