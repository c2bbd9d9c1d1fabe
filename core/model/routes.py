"""Which experts a router chose, and where two choices of the same scores part: a near tie is no other choice.

Shape letters: T tokens, E experts, K chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.model.experts import scores, weigh
from core.model.layers import Experts

TIE = 1e-5  # of the largest score: float32 may put either of two so near first


@dataclass(frozen=True, slots=True)
class Swap:
    """A token for which one side took an expert that the other left.

    margin: how far the two scores lie apart, of the largest score of the token.
    """

    token: int
    taken: int
    left: int
    margin: float

    def text(self, limit: float) -> str:
        """Say it. limit: the margin under which it is a tie."""
        said = "below the floor" if self.margin <= limit else f"{self.margin:.2g} of the largest score, above the floor"
        return f"token {self.token}: expert {self.taken} for {self.left}, margin {said}"


def swaps(e: Experts, router_TE: Tensor, bias_E: Tensor | None, a_TE: Tensor, b_TE: Tensor, first: int = 0
          ) -> list[Swap]:
    """Where b took other experts than a: dense weights [T, E]. router: a's logits. first: position of row 0."""
    pick_TE = scores(e, router_TE.double(), None if bias_E is None else bias_E.double())[1]
    found = []
    for t in (((a_TE != 0) ^ (b_TE != 0)).any(1)).nonzero().flatten().tolist():
        taken = ((b_TE[t] != 0) & (a_TE[t] == 0)).nonzero().flatten().tolist()
        left = ((a_TE[t] != 0) & (b_TE[t] == 0)).nonzero().flatten().tolist()
        most = float(pick_TE[t].abs().max()) or 1.0
        taken, left = (sorted(ids, key=lambda i: float(pick_TE[t, i])) for ids in (taken, left))
        found += [Swap(first + t, i, j, abs(float(pick_TE[t, j] - pick_TE[t, i])) / most)
                  for i, j in zip(taken, left, strict=False)]
    return found


def with_ties_of(
    e: Experts, router_TE: Tensor, bias_E: Tensor | None, truth_TE: Tensor, source_TE: Tensor, limit: float = TIE
) -> tuple[Tensor, list[Swap]]:
    """Weigh the source's experts where its choice is a tie with the right one: the choice is judged as a set.

    Returns the right weights [T, E] so weighed, and the ties.
    """
    found = swaps(e, router_TE, bias_E, truth_TE, source_TE)
    near = [s for s in found if s.margin <= limit]
    rows = {s.token for s in near} - {s.token for s in found if s.margin > limit}
    rows = {t for t in rows if int((source_TE[t] != 0).sum()) == e.used}
    if not rows:
        return truth_TE, []
    p_TE = scores(e, router_TE.to(truth_TE), None if bias_E is None else bias_E.to(truth_TE))[0]
    out = truth_TE.clone()
    for t in sorted(rows):
        index_1K = (source_TE[t : t + 1] != 0).nonzero()[:, 1].view(1, -1)
        out[t] = weigh(e, p_TE[t : t + 1], index_1K)[0]
    return out, [s for s in near if s.token in rows]


def margins(router_TE: Tensor, weights_TE: Tensor) -> Tensor:
    """How far the last chosen expert's logit is above the best one left [T]; under 0 where a bias or groups chose."""
    chosen_TE = weights_TE != 0
    logits_TE = router_TE.double()
    last_T = logits_TE.masked_fill(~chosen_TE, torch.inf).min(1).values
    best_T = logits_TE.masked_fill(chosen_TE, -torch.inf).max(1).values
    return last_T - best_T
