"""Hold the gradients of the first step against float64, and float64's backward against its own finite differences.

The first column tells rounding (bf16, a bad kernel); the second tells a wrong backward, which float64 would repeat: a
directional derivative, (L(w + h d) - L(w - h d)) / 2h, knows nothing of autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate
from core.system.progress import Phase
from core.train.events import Note
from core.train.log import write_document
from core.train.loop import Trainer
from core.train.model import Decoder, layer_of, load_values

ORACLE = "oracle.json"
STEP_H = 1e-4          # relative to the weight's norm: the error of a central difference is h^2
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}   # relative L2 of a gradient: sums over a batch in that type
SLOPE_TOLERANCE = 1e-3  # relative, of a central difference in float64 at STEP_H
SLOPE_FLOOR = 1e-9     # of a slope beside which rounding of the loss itself (1e-16 / h) still counts


@dataclass(frozen=True, slots=True)
class OracleCell:
    """One parameter. error: |g - g64| / |g64| (L2). slope_error: of float64's gradient, along one direction."""

    name: str
    layer: int | None
    error: float
    cosine: float
    slope_error: float
    holds: bool


def write_oracle(trainer: Trainer) -> list[OracleCell]:
    """Write oracle.json and tell what it shows; empty where FSDP2 spreads the weights, for a copy needs them whole."""
    if any(hasattr(weight, "device_mesh") for _, weight in trainer.stepper.named):
        trainer.emit(Note("oracle: not measured, for the weights are spread over processes"))
        return []
    trainer.emit(Phase("comparing the first step's gradients with float64"))
    model = trainer.stepper.model
    assert isinstance(model, Decoder)
    batch = trainer.rows(trainer.order.batch(trainer.memory.cursor, trainer.plan.batch))
    with trainer.stepper.autocast():
        loss = model(batch[:, :-1], batch[:, 1:])
    torch.autograd.backward(loss)
    found = {name: weight.grad.detach().clone() for name, weight in model.named_parameters() if weight.grad is not None}
    trainer.stepper.optimizer.zero_grad(set_to_none=True)
    kind = "bfloat16" if trainer.stepper.device.type == "cuda" else "float32"
    cells = oracle_cells(model, batch, found, TOLERANCES[kind])
    if trainer.world.is_first:
        write_document(trainer.out / ORACLE, {"compute": kind, "tolerance": TOLERANCES[kind],
                                              "slope_tolerance": SLOPE_TOLERANCE, "cells": cells})
    trainer.emit(Note(oracle_table(cells)))
    trainer.emit(Note(f"oracle: {oracle_sentence(cells)}"))
    return cells


def oracle_cells(model: Decoder, batch: Tensor, found: dict[str, Tensor], tolerance: float) -> list[OracleCell]:
    """Compare each parameter's gradient; the model is copied to float64 and left alone."""
    exact = Decoder(model.arch).to(batch.device).double()  # a new one: a copy would take compiled parts along
    load_values(exact, dict(model.named_parameters()))
    for row in torch.split(batch, 1):  # the mean of the rows' losses; all at once would not fit where it trains
        torch.autograd.backward(exact(row[:, :-1], row[:, 1:]) / len(batch))
    return [_cell(exact, batch, name, weight, found.get(name), tolerance) for name, weight in exact.named_parameters()]


def oracle_sentence(cells: list[OracleCell]) -> str:
    """Say in a sentence what the oracle found."""
    bad = [cell for cell in cells if not cell.holds]
    if not bad:
        worst = max(cells, key=lambda cell: cell.error)
        return f"all {len(cells)} gradients hold; the largest error is {worst.error:.2g}, of {worst.name}"
    return (f"{len(bad)} of {len(cells)} gradients differ, first {bad[0].name}: error {bad[0].error:.2g} against "
            f"float64, {bad[0].slope_error:.2g} against finite differences")


def oracle_gate(cells: list[OracleCell]) -> Gate:
    """The oracle as a gate."""
    rule = "the first step's gradients are those of float64"
    if not cells:
        return Gate("ORACLE", rule, "not looked at", NOT_MEASURED, ORACLE)
    return Gate("ORACLE", rule, oracle_sentence(cells), PASS if all(cell.holds for cell in cells) else FAIL, ORACLE)


def oracle_table(cells: list[OracleCell]) -> str:
    """Layers down, parameters across: the error of each gradient against float64, X where it does not hold."""
    found = {(cell.layer, cell.name.removesuffix(".weight").split(".")[-1]): cell for cell in cells}
    names = list(dict.fromkeys(name for layer, name in found if layer is not None))
    lines = ["layer " + "".join(f"{name.removeprefix('attn_').removeprefix('ffn_'):>9}" for name in names)]
    for layer in sorted({layer for layer, _ in found if layer is not None}):
        row = [found[layer, name] for name in names]
        lines.append(f"{layer:>5} " + "".join(f"{cell.error:>8.1e}{' ' if cell.holds else 'X'}" for cell in row))
    rest = [cell for cell in cells if cell.layer is None]
    return "\n".join([*lines, *(f"{c.name} {c.error:.1e}{'' if c.holds else ' X'}" for c in rest)])


def _cell(
    exact: Decoder, batch: Tensor, name: str, weight: torch.nn.Parameter, found: Tensor | None, tolerance: float,
) -> OracleCell:
    wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
    grad = torch.zeros_like(wanted) if found is None else found.double()
    size = float(wanted.norm())
    error = float((grad - wanted).norm()) / size if size else float(found is not None and float(grad.norm()) > 0)
    cosine = float((grad * wanted).sum() / (grad.norm() * wanted.norm())) if size and float(grad.norm()) else 0.0
    slope = _slope_error(exact, batch, weight, wanted, size)
    return OracleCell(name, layer_of(name), error, cosine, slope, error <= tolerance and slope <= SLOPE_TOLERANCE)


@torch.no_grad()
def _slope_error(exact: Decoder, batch: Tensor, weight: torch.nn.Parameter, grad: Tensor, size: float) -> float:
    """Step along a seeded direction, half of it the gradient's own; compare the slope with <gradient, direction>."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weight.device)
    direction = noise / noise.norm() + (grad / size if size else 0)
    h = STEP_H * max(float(weight.norm()), 1e-3)
    old = weight.detach().clone()
    losses = []
    for sign in (1, -1):
        weight.copy_(old + sign * h * direction)
        losses.append(float(exact(batch[:, :-1], batch[:, 1:])))
    weight.copy_(old)
    slope, wanted = (losses[0] - losses[1]) / (2 * h), float((grad * direction).sum())
    return abs(slope - wanted) / max(abs(slope), abs(wanted), SLOPE_FLOOR)
