"""KL of B from A, token by token over a text, teacher-forced: KL(A || B) in nats, and what it adds up to.

Shape letters: T tokens, N of a slice, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from core.damage.logits import hidden_states, logit_slices, untapped
from core.model.model import Tap
from core.system.arrays import Floats, Floats32
from core.system.cancel import IsCancelled
from core.trace.run import SEED, Side

QUANTILES = {"p90": 0.9, "p99": 0.99, "p999": 0.999}
EDGES = (0.0, 0.5, 0.9, 0.99, 1.0)  # of A's confidence: the probability of its likeliest token
FIRST_POSITIONS = 32.0  # of a chunk, in a bucket of their own
NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class TokenKl:
    """One chunk's numbers, one a token [T]: KL in nats, whether both name the same token, A's confidence, and the
    surprise of the token that really follows, in nats, of A and of B (NaN for the last).
    """

    kl: Floats
    same: Floats
    confidence: Floats
    nll_a: Floats
    nll_b: Floats


@dataclass(frozen=True, slots=True)
class Outside:
    """Another engine on a file. run: what its final norm gives for tokens [T, D], and the compute that it declares.

    side: the file here; its head, at that compute, makes logits of what the engine gives.
    """

    side: Side
    run: Callable[[Sequence[int]], tuple[Floats32, str]]


def token_kl(
    a: Side | Outside, b: Side | Outside, tokens: Sequence[int], cancelled: IsCancelled, taps: Sequence[Tap] = ()
) -> TokenKl:
    """Measure a chunk; both sides run in one pass where both run here. taps: of A and of B, to change a value."""
    if isinstance(a, Side) and isinstance(b, Side):
        hidden_a, hidden_b = hidden_states((a, b), tokens, taps or untapped(2), cancelled)
    else:
        (a, hidden_a), (b, hidden_b) = (_with_hidden(side, tokens, cancelled) for side in (a, b))
    following = torch.tensor([*tokens[1:], 0])
    parts: list[list[Tensor]] = []
    at = 0
    for y_a, y_b in zip(logit_slices(a, hidden_a, cancelled), logit_slices(b, hidden_b, cancelled), strict=True):
        parts.append(compare_logits(y_a, y_b, following[at:at + len(y_a)]))
        at += len(y_a)
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    columns[3][-1] = columns[4][-1] = math.nan
    return TokenKl(*columns)


def _with_hidden(side: Side | Outside, tokens: Sequence[int], cancelled: IsCancelled) -> tuple[Side, Tensor]:
    if isinstance(side, Side):
        return side, hidden_states([side], tokens, untapped(1), cancelled)[0]
    hidden_TD, compute = side.run(tokens)
    return replace(side.side, compute=compute), torch.from_numpy(hidden_TD)


def compare_logits(y_a: Tensor, y_b: Tensor, following_N: Tensor) -> list[Tensor]:
    """KL(A || B), same top token, A's confidence, surprise of the following token in A and B: each [N], float64."""
    with torch.inference_mode():
        p_NV, q_NV = (y.cpu().double().log_softmax(-1) for y in (y_a, y_b))
        best = p_NV.argmax(-1)
        kl = (p_NV.exp() * (p_NV - q_NV)).nansum(-1).clamp_min(0)
        broken = ~(torch.isfinite(p_NV).all(-1) & torch.isfinite(q_NV).all(-1))
        kl = kl.masked_fill(broken, math.inf)
        rows = torch.arange(len(best))
        return [kl, (best == q_NV.argmax(-1)).double(), p_NV[rows, best].exp(), -p_NV[rows, following_N],
                -q_NV[rows, following_N]]


def last_kl(y_a: Tensor, y_b: Tensor) -> float:
    """KL of B from A, in nats, of one token's logits [1, V]."""
    return float(compare_logits(y_a, y_b, torch.zeros(1, dtype=torch.long))[0])


def noise_floor(a: Side, tokens: Sequence[int], cancelled: IsCancelled) -> float:
    """Mean KL of A against A with noise of float32's rounding put on its embedding: below it nothing is said."""
    generator = torch.Generator().manual_seed(SEED)

    def noisy(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if stage != "embedding":
            return value
        noise = torch.empty(value.shape).uniform_(-1, 1, generator=generator).to(value)
        return value * (1 + 2.0**-24 * noise)

    found = token_kl(a, a, tokens, cancelled, [untapped(1)[0], noisy])
    return float(found.kl.mean())


@dataclass(frozen=True, slots=True)
class KlSummary:
    """What the tokens add up to. interval: 95 % of the mean, by chunks; floor: self-noise, in nats a token.

    buckets: by A's confidence; positions: by the position in a chunk.
    """

    tokens: int
    mean: float
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    top1: float
    ppl_a: float
    ppl_b: float
    interval: tuple[float, float]
    floor: float
    buckets: tuple[dict[str, float | int | None], ...]
    positions: tuple[dict[str, float | int | None], ...]


def summarise(chunks: Sequence[TokenKl], floor: float) -> KlSummary:
    """Add up the chunks."""
    kl, same, confidence, nll_a, nll_b = (np.concatenate([getattr(c, name) for c in chunks])
                                          for name in TokenKl.__slots__)
    mean = float(kl.mean())
    means = np.array([c.kl.mean() for c in chunks]) if len(chunks) > 1 else kl
    weights = np.array([len(c.kl) for c in chunks]) if len(chunks) > 1 else np.ones(len(kl))
    spread = float(np.sqrt((weights**2 * (means - mean) ** 2).sum()) / weights.sum()) if len(means) > 1 else 0.0
    quantiles = {name: float(np.quantile(kl, q)) for name, q in QUANTILES.items()}
    return KlSummary(
        len(kl), mean, float(np.median(kl)), **quantiles, max=float(kl.max()), top1=float(same.mean()),
        ppl_a=float(np.exp(np.nanmean(nll_a))), ppl_b=float(np.exp(np.nanmean(nll_b))),
        interval=(max(0.0, mean - NORMAL_95 * spread), mean + NORMAL_95 * spread), floor=floor,
        buckets=tuple(_bucket(low, high, kl, same, confidence) for low, high in pairwise(EDGES)),
        positions=_by_position(chunks, kl, same))


def _by_position(chunks: Sequence[TokenKl], kl: Floats, same: Floats) -> tuple[dict[str, float | int | None], ...]:
    """Buckets of FIRST_POSITIONS, then each to four times the position, as far as a chunk goes."""
    at = np.concatenate([np.arange(len(c.kl), dtype=np.float64) for c in chunks])
    edges = [0.0, FIRST_POSITIONS]
    while edges[-1] <= at.max():
        edges.append(edges[-1] * 4)
    return tuple(_bucket(int(low), int(high), kl, same, at) for low, high in pairwise(edges))


def _bucket(low: float, high: float, kl: Floats, same: Floats, by: Floats) -> dict[str, float | int | None]:
    inside = (by >= low) & ((by < high) | (high == EDGES[-1]))
    n = int(inside.sum())
    return {"from": low, "to": high, "tokens": n, "mean": float(kl[inside].mean()) if n else None,
            "top1": float(same[inside].mean()) if n else None}
