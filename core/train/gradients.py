"""Take gradient statistics of every parameter, and sum them up by layer. It steps nothing.

Norms and shares are of the whole tensor also where FSDP2 spreads it over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from core.train.model import layer_of
from core.train.records import GradRow, Grads

Named = Sequence[tuple[str, nn.Parameter]]
Moves = Mapping[str, tuple[float, float, float]]


def gradient_figures(named: Named) -> dict[str, tuple[float, float]]:
    """Return each parameter's gradient norm (L2) and share of exact zeros; (0, 1) where it has no gradient."""
    have = [(name, weight.grad) for name, weight in named if weight.grad is not None]
    norms = torch.stack([whole(n).float() for n in torch._foreach_norm([g for _, g in have])])
    full = torch.stack([whole(torch.count_nonzero(g)).float() / g.numel() for _, g in have])
    figures = dict.fromkeys((name for name, _ in named), (0.0, 1.0))
    read = torch.stack([norms, 1 - full]).tolist()
    return figures | {name: (norm, zero) for (name, _), norm, zero in zip(have, *read, strict=True)}


def copy_weights(named: Named) -> list[Tensor]:
    """Copy what each parameter holds before an update."""
    return [weight.detach().clone() for _, weight in named]


def move_figures(named: Named, before: Sequence[Tensor]) -> dict[str, tuple[float, float, float]]:
    """Return |old| (L2), |new - old| (L2) and the largest |new - old| of each parameter."""
    after = [weight.detach() for _, weight in named]
    moves = torch._foreach_sub(after, list(before))
    figures = (torch._foreach_norm(list(before)), torch._foreach_norm(moves), torch._foreach_norm(moves, torch.inf))
    read = torch.stack([torch.stack([whole(v).float() for v in values]) for values in figures]).tolist()
    return {name: (old, moved, top) for (name, _), old, moved, top in zip(named, *read, strict=True)}


def grad_table(
    step: int, named: Named, gradients: Mapping[str, tuple[float, float]], moves: Moves,
) -> Grads:
    """Sum up by layer, in the model's order; layer None stands for embedding, last norm and head."""
    counts = {name: weight.numel() for name, weight in named}
    layers = sorted({layer_of(name) for name, _ in named}, key=lambda layer: (layer is None, layer or 0))
    rows = []
    for layer in layers:
        names = [name for name, _ in named if layer_of(name) == layer]
        norm = sum(gradients[n][0] ** 2 for n in names) ** 0.5
        old, moved = (sum(moves[n][i] ** 2 for n in names) ** 0.5 for i in (0, 1))
        zeros = sum(gradients[n][1] * counts[n] for n in names) / sum(counts[n] for n in names)
        rows.append(GradRow(layer, norm, moved / old if old else None, zeros))
    parameters = {
        name: (norm, moves[name][1] / moves[name][0] if moves[name][0] else None, zero)
        for name, (norm, zero) in gradients.items()}
    return Grads(step, tuple(rows), parameters)


def census(named: Named) -> list[str]:
    """Name the parameters that hold a value that is not finite, in the model's order."""
    bad = torch.stack([whole((~torch.isfinite(weight.detach())).sum()) for _, weight in named])
    return [name for (name, _), count in zip(named, bad.tolist(), strict=True) if count]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
