"""Say what architecture a model file holds: one record of sizes, every tensor held to its shape. None is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.formats.architectures import ARCHS, Family
from core.formats.model_file import ModelFile
from core.model.stages import STAGES, stage_named
from core.system.errors import FileError
from core.system.mapped_file import shown

PAIRINGS = {0: "adjacent", 2: "halves"}  # .apr's rope_type
ROPE_SCALINGS = ("none", "linear", "yarn")  # llama3's scaling comes as the tensor rope_freqs


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: angle = position * base ** (-2i / dim) / factors[i], then the scaling."""

    base: float
    dim: int
    pairing: str
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class Arch:
    """Hyper-parameters of a model, as its forward needs them."""

    name: str
    n_layer: int
    d_model: int
    n_head: int
    n_kv_head: int
    head_dim: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    eps: float
    rope: Rope
    qk_norm: bool
    tied: bool  # the output head is the token embedding

    @property
    def widths(self) -> dict[str, int]:
        """Width of each stage letter (stages.py)."""
        q, kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        return {"D": self.d_model, "Q": q + 2 * kv, "H": q, "K": kv, "F": self.d_ff, "V": self.n_vocab}

    def qkv_part(self, part: str) -> slice:
        """The columns of qkv that hold part q, k or v."""
        q, kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[part]


def read_arch(model: ModelFile) -> Arch:
    """Read the architecture and hold every tensor to its shape; FileError names what is missing or differs."""
    family, name = family_of(model), str(model.key("general.architecture"))
    if family is None:
        raise FileError(f"{model.path.name} holds architecture {shown(name)}; this build knows {', '.join(ARCHS)}.")
    if model.key(f"{name}.expert_count", 0):
        raise FileError(f"{model.path.name} is a mixture of experts; this build runs dense layers only.")
    d_model, n_head = _size(model, "embedding_length"), _size(model, "attention.head_count")
    if "token_embd.weight" not in model.weights:
        raise FileError(f"{model.path.name} has no tensor token_embd.weight: a vocabulary without a model?")
    head_dim = head_width(model)
    if _size(model, "attention.value_length", head_dim) != head_dim:
        raise FileError(f"{model.path.name}: keys and values of a head differ in width; this build needs them equal.")
    arch = Arch(
        name=name, n_layer=_size(model, "block_count"), d_model=d_model, n_head=n_head,
        n_kv_head=_size(model, "attention.head_count_kv", n_head), head_dim=head_dim,
        d_ff=_size(model, "feed_forward_length"), n_vocab=model.weight("token_embd.weight").shape[0],
        n_ctx=_size(model, "context_length", 2048), eps=_eps(model), rope=_rope(model, family, head_dim),
        qk_norm=family.qk_norm, tied="output.weight" not in model.weights,
    )
    if arch.n_head % arch.n_kv_head:
        heads = f"{arch.n_head} query heads cannot share {arch.n_kv_head} key-value heads evenly"
        raise FileError(f"{model.path.name}: {heads}.")
    _hold_shapes(model, arch)
    return arch


def family_of(model: ModelFile) -> Family | None:
    """The family of the file's architecture; None where this build does not know it."""
    name = model.key("general.architecture")
    return ARCHS.get(name) if isinstance(name, str) else None


def pairing_said(model: ModelFile) -> str | None:
    """The RoPE pairing that an .apr states; None where the file says none, or one that does not exist."""
    kind = model.key("apr.rope_type")
    return PAIRINGS.get(kind) if isinstance(kind, int) else None


def head_width(model: ModelFile) -> int:
    """Channels of a head; FileError."""
    usual = _size(model, "embedding_length") // _size(model, "attention.head_count")
    return _size(model, "attention.key_length", usual)


def layer_weights(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor that a layer must have, under its name after blk.N."""
    d, f = arch.d_model, arch.d_ff
    q, kv = arch.n_head * arch.head_dim, arch.n_kv_head * arch.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (d,), "attn_q.weight": (q, d), "attn_k.weight": (kv, d), "attn_v.weight": (kv, d),
        "attn_output.weight": (d, q), "ffn_norm.weight": (d,), "ffn_gate.weight": (f, d), "ffn_up.weight": (f, d),
        "ffn_down.weight": (d, f),
    }
    if arch.qk_norm:
        shapes |= {"attn_q_norm.weight": (arch.head_dim,), "attn_k_norm.weight": (arch.head_dim,)}
    return shapes


def optional_biases(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shape of each bias that a layer may have."""
    shapes = layer_weights(arch)
    return {f"{name}.bias": shapes[f"{name}.weight"][:1] for s in STAGES if s.biased for name in s.weights}


def stage_weights(model: ModelFile, layer: int | None, stage: str) -> list[str]:
    """Name the tensors that a stage reads, those the file has."""
    row, prefix = stage_named(stage), "" if layer is None else f"blk.{layer}."
    parts = ("weight", "bias") if row.biased else ("weight",)
    found = [full for name in row.weights for part in parts if (full := f"{prefix}{name}.{part}") in model.weights]
    tied = f"{prefix}{row.tied}.weight"
    return [tied] if not found and tied in model.weights else found


def _number(model: ModelFile, key: str, default: float | None = None) -> Any:  # noqa: ANN401
    """Return {arch}.key, or the first of it where a file gives one value a layer and all are equal."""
    full = f"{model.key('general.architecture')}.{key}"
    value = model.key(full, default)
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        value = value[0]
    if value is None:
        raise FileError(f"{model.path.name} has no key {full}; its architecture needs it.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FileError(f"{model.path.name}: {full} is {value!r}; one number is needed.")
    return value


def _size(model: ModelFile, key: str, default: int | None = None) -> int:
    value = _number(model, key, default)
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise FileError(f"{model.path.name}: {key} is {value!r}; a whole number from 1 is needed.")
    return value


def _eps(model: ModelFile) -> float:
    eps = float(_number(model, "attention.layer_norm_rms_epsilon"))
    if not 0 <= eps < 1:
        key = "attention.layer_norm_rms_epsilon"
        raise FileError(f"{model.path.name}: {key} is {eps}; a small positive number is needed.")
    return eps


def _rope(model: ModelFile, family: Family, head_dim: int) -> Rope:
    name = model.key("general.architecture")
    scaling = str(model.key(f"{name}.rope.scaling.type", "none"))
    if scaling not in ROPE_SCALINGS:
        known = f"this build knows {', '.join(ROPE_SCALINGS)} and rope_freqs"
        raise FileError(f"{model.path.name}: RoPE scaling {scaling!r}; {known}.")
    kind, said = model.key("apr.rope_type"), pairing_said(model)
    if kind is not None and said is None:
        raise FileError(f"{model.path.name}: rope_type {kind!r}; 0 (adjacent pairs) or 2 (split halves) is needed.")
    rope = Rope(
        base=float(_number(model, "rope.freq_base", 10000.0)), dim=_size(model, "rope.dimension_count", head_dim),
        pairing=said or family.pairing, scaling=scaling,
        factor=float(_number(model, "rope.scaling.factor", 1.0)),
        original_context=_size(
            model, "rope.scaling.original_context_length", model.key(f"{name}.context_length", 2048)),
        attention_factor=float(_number(model, "rope.scaling.attn_factor", 1.0)),
        beta_fast=float(_number(model, "rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(_number(model, "rope.scaling.yarn_beta_slow", 1.0)),
    )
    numbers = (rope.base, rope.factor, rope.attention_factor, rope.beta_fast, rope.beta_slow)
    if rope.dim > head_dim or rope.dim % 2 or not all(0 < x < math.inf for x in numbers) or (
            scaling == "yarn" and rope.base == 1):
        raise FileError(f"{model.path.name}: RoPE of {rope.dim} channels, base {rope.base}, factor {rope.factor} "
                        f"cannot turn heads of {head_dim}.")
    return rope


def _hold_shapes(model: ModelFile, arch: Arch) -> None:
    for name, shape, is_needed in _shapes(arch):
        if not is_needed and name not in model.weights:
            continue
        found = model.weight(name).shape
        if found != shape:
            raise FileError(f"{model.path.name}: {name} has shape {list(found)}; "
                            f"its hyper-parameters need {list(shape)}.")


def _shapes(arch: Arch) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield each tensor's name, shape, and whether it is needed; one by one, for a file may claim a billion layers."""
    yield "token_embd.weight", (arch.n_vocab, arch.d_model), True
    yield "output_norm.weight", (arch.d_model,), True
    yield "output.weight", (arch.n_vocab, arch.d_model), False
    yield "rope_freqs.weight", (arch.rope.dim // 2,), False
    for layer in range(arch.n_layer):
        yield from ((f"blk.{layer}.{name}", shape, True) for name, shape in layer_weights(arch).items())
        yield from ((f"blk.{layer}.{name}", shape, False) for name, shape in optional_biases(arch).items())
