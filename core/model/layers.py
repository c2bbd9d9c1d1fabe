"""What a layer of a model is, resolved once from the family's row, the file's keys and its tensors.

The forward, the replay, the plants and the sources read only this. Not here: how it is resolved (families.py), and the
stages of every layer kind (nodes.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.model.stages import Operation

ATTENTION, MLA = "attention", "mla"
DELTA_NET, MAMBA, MAMBA2, SHORT_CONV = "delta_net", "mamba", "mamba2", "short_conv"
RECURRENT = (DELTA_NET, MAMBA, MAMBA2, SHORT_CONV)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: angle = position * base ** (-2i / dim) / factors[i], then the scaling.

    factors: the tensor that holds them. mscale: YaRN also scales cos and sin, by 1 + 0.1 ln(factor).
    """

    base: float
    dim: int
    pairing: str
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    factors: str | None = None
    mscale: bool = True


@dataclass(frozen=True, slots=True)
class Temperature:
    """A query at position p is multiplied by 1 + scale * ln(1 + floor((p + offset) / length))."""

    scale: float
    length: float
    offset: float


@dataclass(frozen=True, slots=True)
class Mla:
    """Sizes of latent attention: queries through q_rank (0: straight), keys and values through kv_rank.

    rope: the last channels of a head of k_width that RoPE turns. joined: attn_kv_b in place of attn_k_b and attn_v_b.
    """

    q_rank: int
    kv_rank: int
    rope: int
    k_width: int
    v_width: int
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer; what is 0, None, empty or False it does not have.

    scale: of the scores; None: 1 / sqrt(width). window: positions that a query sees, itself included; chunked: those
    since the last multiple of it. cap: scores become cap * tanh(scores / cap). q_norm, k_norm: "head" or "whole".
    gate: "query" (attn_q holds each head's query, then its gate) or "own" (attn_gate), sigmoid, times the mix.
    joined: attn_qkv. own_k, own_v: it has those tensors; values without their own are the keys. kv_from: the layer
    whose keys and values it reads.
    """

    n_head: int
    n_kv: int
    width: int
    rope: Rope | None
    scale: float | None = None
    window: int = 0
    chunked: bool = False
    cap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    q_norm: str = ""
    k_norm: str = ""
    norm_after_rope: bool = False
    l2: bool = False
    v_norm: bool = False
    gate: str = ""
    joined: bool = False
    own_k: bool = True
    own_v: bool = True
    clamp: float = 0.0
    temperature: Temperature | None = None
    kv_from: int | None = None
    mla: Mla | None = None

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of qkv that hold q (with its gate), k and v."""
        q, kv = self.n_head * self.width, self.n_kv * self.width
        return q * (2 if self.gate == "query" else 1), kv * self.own_k, kv * self.own_v

    @property
    def is_plain(self) -> bool:
        """Whether it is softmax(q k / sqrt(width)) v under the causal mask, which a device may have kernels for."""
        return self.scale is None and not (self.window or self.cap or self.sinks or self.alibi)

    def part(self, name: str) -> slice:
        """The columns of qkv that hold part q, k or v."""
        q, k, v = self.widths
        return {"q": slice(0, q), "k": slice(q, q + k), "v": slice(q + k, q + k + v)}[name]


@dataclass(frozen=True, slots=True)
class Ssm:
    """Sizes of a recurrent mixer. conv: positions that its convolution sees. rank: heads, or Mamba-1's time step rank.

    tiled: value head j reads key head j % groups, else j // (rank / groups). packed: ssm_ba, by key head, in place of
    ssm_beta and ssm_alpha. normed: Mamba-1's dt, b and c are, without weights too (Falcon Mamba).
    """

    conv: int
    inner: int
    state: int = 0
    rank: int = 0
    groups: int = 1
    tiled: bool = False
    packed: bool = False
    normed: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: which are chosen (n, used, router, groups), how they are weighted, what stands beside.

    gate: split, joined (ffn_gate_up_exps) or none. norm: the weights of the chosen sum to 1; scale: times this.
    weight_first: an expert's input is weighted. down_scale: ffn_down_exps.scale. choice: exp_probs_b. shared: width of
    the shared experts, 0 without; shared_router: their output times sigmoid(ffn_gate_inp_shexp).
    own_norms: the router and the experts have norms of their own, and the dense feed-forward stands beside them.
    """

    n: int
    used: int
    router: str
    width: int
    gate: str
    norm: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    choice: bool = False
    weight_first: bool = False
    down_scale: bool = False
    shared: int = 0
    shared_gate: bool = False
    shared_router: bool = False
    own_norms: bool = False


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward: width, activation, gate (split, joined: ffn_up holds gate and up, none), and its experts.

    numbers: xIELU's alpha_p, alpha_n, beta, eps.
    """

    width: int
    act: str
    gate: str
    experts: Experts | None = None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A stage as one layer has it: operation, inputs, width, and the tensors behind it, without blk.N. and .weight."""

    operation: Operation
    width: int
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its mixers (added together; none: it is a feed-forward alone), its feed-forward, its norms.

    attn_norm, ffn_norm, attn_post, ffn_post: full names of the norms' weights, None where it has none; ffn_norm_reads:
    the stage that ffn_norm reads, or, where there is no ffn_norm, that the feed-forward reads. parallel: mixer and
    feed-forward are added to the layer's input at once. residual: what both are multiplied by first.
    per_layer: width of the layer's part of per-layer inputs (Gemma 4), 0 without. scaled: layer_output_scale.
    nodes: what each of its stages is. shapes: of each tensor it has, under its full name.
    """

    index: int
    prefix: str  # blk.N.
    mixers: tuple[str, ...]
    attention: Attention | None
    ssm: Ssm | None
    ffn: FeedForward | None
    attn_norm: str | None
    ffn_norm: str | None
    attn_post: str | None = None
    ffn_post: str | None = None
    ffn_norm_reads: str = "attn_resid"
    parallel: bool = False
    residual: float = 1.0
    per_layer: int = 0
    scaled: bool = False
    nodes: Mapping[str, Node] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        """Say what kind of layer it is, for a person and for comparing a layer with the one before of its kind."""
        window = self.attention is not None and self.attention.window
        parts = [*self.mixers, *(["window"] if window else [])]
        if self.ffn is not None and self.ffn.experts is not None:
            parts.append("experts")
        return " ".join(parts) or "feed-forward"
