"""The few operations of a decoder layer, in whatever float type comes in. No weights, no files, no state.

Shape letters: T tokens, S positions so far, D model, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from core.model.layers import FeedForward, Rope


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight, over the last axis. Source: Zhang and Sennrich 2019."""
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D


def rms_scale(x: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps), over the last axis: an RMS norm without weights."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def layer_norm(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps), over the last axis, times the weight if there is one."""
    y = rms_scale(x - x.mean(-1, keepdim=True), eps)
    return y if weight_D is None else y * weight_D


def writable(state: Tensor) -> Tensor:
    """The state of a recurrence, to be changed in place: itself, or its copy where a gradient needs the old one."""
    return state.clone() if torch.is_grad_enabled() else state


def silu(x: Tensor) -> Tensor:
    """Return x / (1 + e^-x)."""
    return torch.nn.functional.silu(x)


def activate(f: FeedForward, x: Tensor) -> Tensor:
    """Return the family's activation of a feed-forward's gate, or of what is up where it has no gate."""
    return _xielu(x, *f.numbers) if f.act == "xielu" else ACTIVATIONS[f.act](x)


def gated(f: FeedForward, gate: Tensor, up: Tensor) -> Tensor:
    """Return the activated gate times what is up; gpt-oss clamps that and adds 1."""
    return gate * (up.clamp(-OAI_LIMIT, OAI_LIMIT) + 1) if f.act == "oai" else gate * up


def _oai(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), of x at most 7. Source: gpt-oss."""
    x = x.clamp(max=OAI_LIMIT)
    return x * torch.sigmoid(OAI_ALPHA * x)


def _xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Tensor:
    """a_p x^2 + beta x above 0, else (e^min(x, eps) - 1 - x) a_n + beta x. Source: Huang and Schlag 2024.

    a_p = softplus(alpha_p), a_n = beta + softplus(alpha_n).
    """
    a_p, a_n = math.log1p(math.exp(alpha_p)), beta + math.log1p(math.exp(alpha_n))
    return torch.where(x > 0, a_p * x * x + beta * x, (torch.expm1(x.clamp(max=eps)) - x) * a_n + beta * x)


def _gelu_table(x: Tensor) -> Tensor:
    """GELU (tanh) as ggml looks it up: of x in float16, in float16; x itself from 10."""
    y = torch.nn.functional.gelu(x.half().to(x.dtype), approximate="tanh")
    return torch.where(x >= GELU_END, x, y.half().to(x.dtype))


ALONE_MACS = 1 << 20  # of attention up to here waking a second thread costs more than it saves
OAI_ALPHA, OAI_LIMIT, GELU_END = 1.702, 7.0, 10.0
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu, "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu, "relu2": lambda x: torch.relu(x).square(), "oai": _oai,
}
TABLES = {"gelu": "gelu_table", "gelu_erf": "gelu_erf_table"}  # ggml has one table for both
ACTIVATIONS |= dict.fromkeys(TABLES.values(), _gelu_table)


def rope_angles(rope: Rope, start: int, n_token: int, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return cos and sin [T, dim / 2] in float64 for positions from start; factors divides each frequency (rope_freqs).

    Source: Su et al. 2021; YaRN: Peng et al. 2023, with ggml's rounding of the ramp's ends.
    """
    half = torch.arange(rope.dim // 2, dtype=torch.float64)
    freq = rope.base ** (-2.0 * half / rope.dim)
    if factors is not None:
        freq = freq / factors.double().cpu()
    scale = rope.attention_factor
    if rope.scaling == "linear":
        freq = freq / rope.factor
    elif rope.scaling == "yarn":
        keep = 1 - ((half - _yarn_low(rope)) / max(0.001, _yarn_high(rope) - _yarn_low(rope))).clamp(0, 1)
        freq = freq / rope.factor * (1 - keep) + freq * keep
        scale *= 1 + 0.1 * math.log(rope.factor) if rope.mscale else 1.0
    angle = torch.arange(start, start + n_token, dtype=torch.float64)[:, None] * freq
    return angle.cos() * scale, angle.sin() * scale


def rotate(x_TNH: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """Turn each pair of the first 2 * cos.shape[1] channels of every head by its angle; the rest pass."""
    return turn(x_TNH, *widen(cos.to(x_TNH), sin.to(x_TNH), pairing), pairing)


def widen(cos: Tensor, sin: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
    """The angles [T, dim / 2] as turn takes them [T, 1, dim]: of each channel, the sine of a pair's first negative."""
    if pairing == "halves":
        wide = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    else:
        wide = torch.stack((cos, cos), -1).flatten(1), torch.stack((-sin, sin), -1).flatten(1)
    return wide[0][:, None], wide[1][:, None]


def turn(x_TNH: Tensor, cos_T1P: Tensor, sin_T1P: Tensor, pairing: str) -> Tensor:
    """Return x * cos + (the other of its pair) * sin of the first P channels of every head; the rest pass."""
    dim, width = cos_T1P.shape[-1], x_TNH.shape[-1]
    x, rest = (x_TNH, None) if dim == width else x_TNH.split_with_sizes((dim, width - dim), -1)
    if pairing == "halves":
        other = x.roll(dim // 2, -1)
    else:
        other = x.reshape(*x.shape[:-1], -1, 2).flip(-1).view(x.shape)
    out = x * cos_T1P + other * sin_T1P
    return out if rest is None else torch.cat((out, rest), -1)


def attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, position: Tensor | None = None) -> Tensor:
    """Return softmax(q k / sqrt(H)) v [T, N * H]; causal, the T queries being the last of the S positions.

    position: the first query's, where the keys and values have room for more than S positions.
    """
    n_token, n_head, _ = q_TNH.shape
    if position is not None:
        k_SKH, v_SKH = (t[:int(position) + n_token] for t in (k_SKH, v_SKH))
    n_seen, n_kv, _ = k_SKH.shape
    q, k, v = (t.transpose(0, 1)[None] for t in (q_TNH, k_SKH, v_SKH))
    is_shared = n_kv < n_head and q.is_cpu and not torch.is_grad_enabled()  # else no fast way has fewer heads of keys
    if n_kv < n_head and not is_shared:
        k, v = (t.repeat_interleave(n_head // n_kv, 1) for t in (k, v))
    mask = None
    if n_seen > n_token > 1:
        mask = torch.ones(n_token, n_seen, dtype=torch.bool, device=q.device).tril(n_seen - n_token)
    usual = torch.get_num_threads()
    try:
        if q.numel() * n_seen <= ALONE_MACS:
            torch.set_num_threads(1)
        mix = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=n_seen == n_token > 1, enable_gqa=is_shared)
    finally:
        torch.set_num_threads(usual)
    return mix[0].transpose(0, 1).flatten(1)


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations that a device may have its own kernels for. angles: cos, sin and pairing as rotate takes them."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    angles: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]
    rotate: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


PLAIN = Ops(rms_norm, widen, turn, attend)


def _yarn_end(rope: Rope, turns: float) -> float:
    return rope.dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))


def _yarn_low(rope: Rope) -> float:
    return max(0, math.floor(_yarn_end(rope, rope.beta_fast)))


def _yarn_high(rope: Rope) -> float:
    return min(rope.dim - 1, math.ceil(_yarn_end(rope, rope.beta_slow)))
