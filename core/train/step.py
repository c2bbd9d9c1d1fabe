"""Take one optimizer step: forward, backward, clip, one synchronisation, update. It writes no file and judges nothing.

All figures of a step cross to the host in one copy, before the update: what is not finite never reaches a weight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from core.train.config import BETAS, CLIP, EPS, WEIGHT_DECAY
from core.train.gradients import Named, copy_weights, grad_table, gradient_figures, move_figures, whole
from core.train.model import Decoder, no_tap
from core.train.peaks import ResidualRecorder, first_nonfinite, headroom
from core.train.records import Grads, Health


@dataclass(frozen=True, slots=True)
class Measured:
    """What one step yields. lr: as the optimizer holds it after the step.

    Of statistics steps only: no_gradient, the parameters whose gradient is exactly zero or absent; top_move, the
    largest change of a vector's element. birth: of a step that is not finite, where that began.
    """

    loss: float
    grad_norm: float
    clipped_norm: float
    lr: float
    wants_stop: bool
    no_gradient: tuple[str, ...] = ()
    top_move: float | None = None
    grads: Grads | None = field(default=None, repr=False)
    birth: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(slots=True)
class Stepper:
    """A model with its optimizer on a device. run: the model or its wrapper.

    sum_up, largest: add figures over processes, or take the largest of each.
    """

    model: nn.Module
    run: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    sum_up: Callable[[Tensor], Tensor] | None = None
    n_process: int = 1
    largest: Callable[[Tensor], Tensor] | None = None

    @property
    def named(self) -> Named:
        """Parameters by their GGUF names."""
        return list(self.model.named_parameters())

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on CUDA, nothing on the CPU."""
        return torch.autocast("cuda", self.dtype) if self.device.type == "cuda" else contextlib.nullcontext()

    def take_step(self, step: int, batch: Tensor, lr: float, statistics: bool, wants_stop: bool = False) -> Measured:
        """Run one step on this process's rows of a batch [B, seq + 1]."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, watch = self._backward(batch, statistics)
        gradients = gradient_figures(self.named) if statistics else None
        health = self._health(step, watch, gradients) if gradients is not None else None
        norm, clipped = clip([weight for _, weight in self.named], CLIP)
        measured = self._read(loss.detach(), norm, clipped, wants_stop)
        if not measured.is_finite:
            return replace(measured, birth=self._birthplace(batch))
        if gradients is None:
            self.optimizer.step()
            return replace(measured, lr=float(self.optimizer.param_groups[0]["lr"]))
        before = copy_weights(self.named)
        self.optimizer.step()
        moves = move_figures(self.named, before)
        vectors = [moves[name][2] for name, weight in self.named if weight.ndim == 1]
        return replace(
            measured, lr=float(self.optimizer.param_groups[0]["lr"]),
            no_gradient=tuple(name for name, (size, _) in gradients.items() if size == 0.0),
            top_move=max(vectors, default=None),
            grads=replace(grad_table(step, self.named, gradients, moves), health=health))

    @torch.no_grad()
    def validate(self, windows: Tensor, batch: int) -> float:
        """Mean loss over windows [n, seq + 1], each window with the same weight."""
        total = torch.zeros((), device=self.device)
        for rows in torch.split(windows, batch):
            with self.autocast():
                loss = self.run(rows[:, :-1], rows[:, 1:])
            total += loss.float() * len(rows)
        return float(total / len(windows))

    def _backward(self, batch: Tensor, is_watched: bool) -> tuple[Tensor, ResidualRecorder]:
        """Leave the batch's gradients in the parameters; returns the loss, and the peaks where they are watched."""
        watch, model = ResidualRecorder(), self.model
        assert isinstance(model, Decoder)
        self.optimizer.zero_grad(set_to_none=True)
        model.tap = watch.tap if is_watched else no_tap
        try:
            with self.autocast():
                loss = self.run(batch[:, :-1], batch[:, 1:])
        finally:
            model.tap = no_tap
        torch.autograd.backward(loss)
        return loss, watch

    def _health(self, step: int, watch: ResidualRecorder, gradients: Mapping[str, tuple[float, float]]) -> Health:
        """Read what was watched, before clipping."""
        peaks, noise = watch.peaks(_norms(gradients), self.largest), watch.noise(self.sum_up)
        return Health(step, *headroom(peaks, self.dtype), *(noise or (None, None)))

    def _birthplace(self, batch: Tensor) -> str:
        """Run a batch that gave NaN or Inf once more, watched, on the weights that it left alone."""
        _, watch = self._backward(batch, is_watched=True)
        return first_nonfinite(watch.peaks(_norms(gradient_figures(self.named)), self.largest))

    def _read(self, loss: Tensor, norm: Tensor, clipped: Tensor, wants_stop: bool) -> Measured:
        """The one synchronisation: the loss averaged over processes; any process's request to stop counts."""
        stop = torch.full((), float(wants_stop), device=loss.device)
        figures = torch.stack([loss.float(), stop, norm, clipped])
        if self.sum_up is not None:
            sums = self.sum_up(figures[:2] / torch.tensor([self.n_process, 1.0], device=loss.device))
            figures = torch.cat([sums, figures[2:]])
        loss_, stop_, norm_, clipped_ = figures.tolist()
        return Measured(loss_, norm_, clipped_, float(self.optimizer.param_groups[0]["lr"]), stop_ > 0)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, fused; weight decay on matrices only."""
    matrices, vectors = ([w for w in model.parameters() if (w.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)


def clip(weights: Sequence[nn.Parameter], max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale gradients in place to a global L2 norm of at most max_norm; returns the norm before and after."""
    norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    clipped = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    return whole(norm).float(), whole(clipped).float()


def _norms(gradients: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: norm for name, (norm, _) in gradients.items()}
