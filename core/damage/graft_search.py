"""Search for the few of A's tensors that bring a token back by exact grafts, where moves of the logits mislead.

Each step adds, or exchanges, the tensor that brings most back of those that the moves hold likeliest, told anew from
the logits that the last graft really gave. Not here: the moves (few_tensors.py).
Shape letters: T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.damage.exact import first_layer, with_weights
from core.damage.few_tensors import Shifts
from core.damage.kl import last_kl
from core.damage.logits import head_weight, hidden_states, logits, untapped
from core.model.model import Resume, Tap
from core.system.cancel import IsCancelled
from core.trace.run import Side

TRIED = 24           # tensors at a step
TRIED_TOKENS = 1024  # of all of them together: a long context has fewer
EXCHANGES = 5         # steps once all are there
Residuals = dict[int, Tensor]  # before each layer [T, D]


def keep_residuals(into: Residuals) -> Tap:
    """Keep the residual before each layer after the first."""
    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage == "output":
            into[(layer or 0) + 1] = value.clone()
        return value
    return tap


def resume_at(side: Side, layer: int, before: Residuals) -> Resume | None:
    """Go on before that layer; None: from the tokens, as a planted bug needs."""
    return None if layer not in before or side.plant or not side.model.arch.can_resume else Resume(layer, before[layer])


@dataclass(frozen=True, slots=True)
class Grafts:
    """What grafts are held to: y_a, A's logits [1, V] of the last token; whole: KL of B from them, in nats."""

    a: Side
    b: Side
    tokens: Sequence[int]
    y_a: Tensor
    whole: float
    cancelled: IsCancelled

    def recovered(self, y_1V: Tensor) -> float:
        """The part of the token's KL that these logits do not have."""
        return 1 - last_kl(self.y_a, y_1V) / self.whole

    def with_one_more(self, names: Sequence[str], more: Sequence[str]) -> dict[str, Tensor]:
        """B's logits [1, V] with A's tensors of these names and each one more; grafts of a layer run side by side."""
        base, before = self._side(names), Residuals()
        hidden_states([base], self.tokens, [keep_residuals(before)], self.cancelled)
        layers: dict[int, list[str]] = {}
        for name in more:
            layers.setdefault(first_layer(name, self.b.model.arch.n_layer), []).append(name)
        last_1D: dict[str, Tensor] = {}
        for layer, together in layers.items():
            sides = [self._side([*names, name]) for name in together]
            hidden = hidden_states(sides, self.tokens, untapped(len(sides)), self.cancelled,
                                   resume_at(base, layer, before))
            last_1D |= {name: h_TD[-1:] for name, h_TD in zip(together, hidden, strict=True)}
        head = head_weight(self.b.model).name
        own = {head: logits(self._side([*names, head]), last_1D.pop(head), self.cancelled)} if head in last_1D else {}
        if not last_1D:
            return own
        y_NV = logits(base, torch.cat(list(last_1D.values())), self.cancelled)
        return {name: y_NV[i:i + 1] for i, name in enumerate(last_1D)} | own

    def _side(self, names: Sequence[str]) -> Side:
        return with_weights(self.b, {name: self.a.model.file.weight(name) for name in names})


def search(shifts: Shifts, grafts: Grafts, most: int, enough: float) -> tuple[tuple[str, ...], float]:
    """The first choice of at most so many tensors that brings enough back, else the best; and what it does."""
    chosen: tuple[str, ...] = ()
    best, told, idle = 0.0, shifts, 0
    n_tried = max(1, min(TRIED, TRIED_TOKENS // len(grafts.tokens)))
    for _ in range(most + EXCHANGES):
        is_full = len(chosen) == most
        rest = chosen[1:] if is_full else chosen
        tried = sorted(told.moves.keys() - set(chosen), key=lambda name: told.left([*rest, name]))[:n_tried]
        if best >= enough or idle == most or not tried:
            break
        found = grafts.with_one_more(rest, tried)
        back = {name: grafts.recovered(y_1V) for name, y_1V in found.items()}
        name = max(tried, key=lambda name: back[name])
        if is_full and back[name] <= best:
            chosen, idle = (*rest, chosen[0]), idle + 1
        else:
            chosen, best, idle = (*rest, name), back[name], 0
            told = shifts.about(chosen, found[name][0])
    return chosen, best
