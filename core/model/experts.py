"""A mixture of experts: the router chooses, the chosen ones compute, their outputs are weighted and summed.

The choice is taken from the tapped moe_weights [T, E] (0 where not chosen), so that a replay makes the source's choice.
Experts that nobody chose are never read. Two choices whose scores are nearly the same are a tie: swaps says where.
Shape letters: T tokens, D model, E experts, K chosen, N = T * K rows (token by token, by rising expert id), F width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.model.layers import Experts, FeedForward, Layer
from core.model.model import Model, Steps, Tap, linear
from core.model.ops import activate, gated, rms_scale

TIE = 1e-5  # of the largest score: float32 may put either of two so near first
LEAST_SUM = 6.1e-5  # ggml's: of the weights that are made to sum to 1


def experts(
    model: Model, layer: Layer, x_TD: Tensor, source_TD: Tensor, tap: Tap, feed_forward: Callable[..., Steps]
) -> Steps:
    """Return the experts' weighted sum of x, with what stands beside them; source: x before its norm."""
    f, i, name = layer.ffn, layer.index, layer.prefix
    assert f is not None and f.experts is not None
    e, routed_TD, chosen_TD = f.experts, x_TD, x_TD
    if e.own_norms:
        scaled_TD = rms_scale(source_TD, model.arch.eps) / math.sqrt(source_TD.shape[-1])
        routed_TD = scaled_TD * model.tensor(name + "ffn_gate_inp.scale")
        chosen_TD = tap(i, "moe_norm", model.norm(name + "pre_ffw_norm_2.weight", source_TD))
    router_TE = tap(i, "moe_router", (yield from linear(model, name + "ffn_gate_inp", routed_TD)))
    bias_E = model.tensor(name + "exp_probs_b.bias").flatten() if e.choice else None
    weights_TE = route(e, router_TE, bias_E)
    if e.down_scale:
        weights_TE = weights_TE * model.tensor(name + "ffn_down_exps.scale")
    out_TD = yield from mixture(model, layer, f, e, chosen_TD, tap(i, "moe_weights", weights_TE), tap)
    out_TD = tap(i, "moe_out", out_TD)
    if e.own_norms:
        out_TD = tap(i, "moe_post_norm", model.norm(name + "post_ffw_norm_2.weight", out_TD))
        beside_TD = tap(i, "shexp_out", (yield from feed_forward(model, layer, f, x_TD, tap, "shexp_")))
        return out_TD + tap(i, "shexp_post_norm", model.norm(name + "post_ffw_norm_1.weight", beside_TD))
    if not e.shared:
        return out_TD
    shared = FeedForward(e.shared, f.act, "split" if e.shared_gate else "none")
    steps = feed_forward(model, layer, shared, x_TD, tap, "shexp_", "_shexp")
    shared_TD = tap(i, "shexp_out", (yield from steps))
    if e.shared_router:
        gate_D = model.tensor(name + "ffn_gate_inp_shexp.weight").view(-1, 1)
        shared_TD = shared_TD * torch.sigmoid(tap(i, "shexp_router", x_TD @ gate_D))
    return out_TD + shared_TD


def route(e: Experts, router_TE: Tensor, bias_E: Tensor | None) -> Tensor:
    """Return the weights [T, E] of the chosen experts, 0 where not chosen.

    The e.used largest p (+ bias) of those in the best groups are chosen (a group's two largest, summed, say which).
    """
    p_TE, pick_TE = scores(e, router_TE, bias_E)
    if e.groups > 1:
        by_group = pick_TE.unflatten(-1, (e.groups, -1))  # type: ignore[no-untyped-call]
        best = by_group.topk(min(2, by_group.shape[-1]), -1).values.sum(-1).topk(e.groups_used, -1).indices
        kept = torch.zeros(by_group.shape[:2], dtype=torch.bool, device=p_TE.device).scatter(1, best, True)
        pick_TE = by_group.masked_fill(~kept[..., None], -math.inf).flatten(1)
    return weigh(e, p_TE, pick_TE.topk(e.used, -1).indices)


def scores(e: Experts, router_TE: Tensor, bias_E: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return p [T, E], by which experts are weighed, and p + bias, by which they are chosen."""
    p_TE = router_TE
    if e.router == "softmax":
        p_TE = router_TE.softmax(-1)
    elif e.router == "sigmoid":
        p_TE = router_TE.sigmoid()
    return p_TE, p_TE if bias_E is None else p_TE + bias_E


def weigh(e: Experts, p_TE: Tensor, index_TK: Tensor) -> Tensor:
    """Return the weights [T, E] of the chosen experts: p, softmax over them for softmax_chosen, divided by their sum
    for norm, times scale.
    """
    w_TK = p_TE.gather(1, index_TK)
    if e.router == "softmax_chosen":
        w_TK = w_TK.softmax(-1)
    if e.norm:
        w_TK = w_TK / w_TK.sum(-1, keepdim=True).clamp(min=LEAST_SUM)
    return torch.zeros_like(p_TE).scatter(1, index_TK, w_TK * e.scale)


def chosen(weights_TE: Tensor, used: int) -> Tensor:
    """Return the chosen experts [T, K] of dense weights, by rising id: those that are not 0, or the largest."""
    hit = weights_TE != 0
    if bool((hit.sum(1) == used).all()):
        return hit.nonzero()[:, 1].view(-1, used)
    largest: Tensor = weights_TE.abs().sort(dim=-1, descending=True, stable=True).indices[:, :used]
    return largest.sort(-1).values


def mixture(
    model: Model, layer: Layer, f: FeedForward, e: Experts, x_TD: Tensor, weights_TE: Tensor, tap: Tap
) -> Steps:
    """Return the sum over the chosen experts of weight * down(act(gate x) * up x)."""
    i, name, n_token = layer.index, layer.prefix + "ffn_", len(x_TD)
    index_TK = chosen(weights_TE, e.used)
    w_N1, id_N = weights_TE.gather(1, index_TK).view(-1, 1), index_TK.flatten()
    x_ND = x_TD.repeat_interleave(e.used, 0)
    if e.weight_first:
        x_ND = x_ND * w_N1

    def tapped(stage: str, value_NF: Tensor) -> Tensor:
        """Tap the chosen experts' values as one row a token."""
        return tap(i, stage, value_NF.reshape(n_token, -1)).reshape(value_NF.shape)

    if e.gate == "split":
        gate_NF = tapped("ffn_gate", (yield from linear(model, name + "gate_exps", x_ND, id_N)))
    up = "gate_up_exps" if e.gate == "joined" else "up_exps"
    up_NF = yield from linear(model, name + up, x_ND, id_N)
    if e.gate == "joined":
        gate_NF, up_NF = up_NF.chunk(2, -1)
        gate_NF = tapped("ffn_gate", gate_NF)
    up_NF = tapped("ffn_up", up_NF)
    h_NF = tapped("ffn_silu", activate(f, up_NF if e.gate == "none" else gate_NF))
    if e.gate != "none":
        h_NF = tapped("ffn_swigl", gated(f, h_NF, up_NF))
    out_ND = tapped("moe_down", (yield from linear(model, name + "down_exps", h_NF, id_N)))
    return (out_ND if e.weight_first else out_ND * w_N1).view(n_token, e.used, -1).sum(1)


# --- two choices of the same scores ----------------------------------------------------------------------------------


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
