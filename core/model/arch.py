"""Say what architecture a model file holds: one record of sizes and layers, every tensor claimed. None is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from core.formats.architectures import ARCHS, REFUSED, Family
from core.formats.model_file import ModelFile
from core.model.families import resolve_layer
from core.model.file_facts import ELSEWHERE, FileFacts
from core.model.layers import Layer, Node, Rope
from core.model.stages import stage_named
from core.system.errors import ArchError, FileError
from core.system.mapped_file import quote_name

KINDS = {  # general.type of files that are no whole model
    "adapter": "a LoRA adapter or control vector: merge it into its model first",
    "mmproj": "the image or sound part of a model (mmproj): give the text model's own file",
    "imatrix": "an importance matrix: give the model that it was made for",
    "vocab": "a vocabulary without a model: give the model's own file",
}


@dataclass(frozen=True, slots=True)
class Arch:
    """Hyper-parameters of a model, as its forward needs them.

    n_head, n_kv_head, head_dim, rope and qk_norm are those of the first layer with attention, d_ff of the first with a
    feed-forward; layers has each. norm: rms, layer or plain. logit_scale, logit_cap: of the logits, cap last.
    """

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
    layers: tuple[Layer, ...] = field(default=(), repr=False)
    norm: str = "rms"
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    out_norm: str = "output_norm.weight"
    per_layer: int = 0  # width of each layer's part of per-layer inputs
    notes: tuple[str, ...] = ()  # for a person: what is not read, and why

    @property
    def widths(self) -> dict[str, int]:
        """Width of each stage letter (stages.py) in the layers that n_head and d_ff speak of."""
        q, kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        usual = {"D": self.d_model, "Q": q + 2 * kv, "H": q, "K": kv, "F": self.d_ff, "V": self.n_vocab}
        for letter, stage in (("Q", "qkv"), ("H", "attn_mix"), ("K", "k_rope"), ("F", "ffn_up")):
            node = next((layer.nodes[stage] for layer in self.layers if stage in layer.nodes), None)
            usual[letter] = usual[letter] if node is None else node.width
        return usual

    @property
    def can_resume(self) -> bool:
        """Whether a layer needs nothing of a run but the residual before it."""
        return not self.per_layer and not any(a is not None and a.kv_from is not None
                                              for a in (layer.attention for layer in self.layers))

    @property
    def is_usual(self) -> bool:
        """Whether every layer is attention without windows and the like, with one RoPE, and a dense feed-forward."""
        return all(
            layer.attention is not None and layer.attention.is_plain and layer.attention.rope == self.rope
            and layer.mixers == ("attention",) and layer.attention.own_v
            and layer.ffn is not None and layer.ffn.experts is None for layer in self.layers)

    def node(self, layer: int | None, stage: str) -> Node | None:
        """What a stage is in a layer; None where the layer lacks it."""
        if layer is not None:
            return self.layers[layer].nodes.get(stage)
        row = stage_named(stage)
        return Node(row.operation, self.n_vocab if row.width == "V" else self.d_model, row.inputs, row.weights)

    def layer(self, index: int | None) -> Layer | None:
        """The layer of a place; None where that is of the whole model."""
        return None if index is None else self.layers[index]

    def width(self, layer: int | None, stage: str) -> int | None:
        """Channels of a stage in a layer; None where the layer lacks it."""
        node = self.node(layer, stage)
        return None if node is None else node.width

    def inputs_of(self, layer: int | None, stage: str) -> tuple[str, ...]:
        """The stages that a stage reads in a layer, or PREVIOUS; () where it lacks the stage, or reads none."""
        node = self.node(layer, stage)
        return () if node is None else node.inputs

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it: sizes, and what differs from the usual decoder."""
        said = {k: v for k, v in asdict(self).items() if k not in INNER}
        said["rope"] = {k: v for k, v in said["rope"].items() if k not in ("factors", "mscale")}
        usual = {"norm": "rms", "embed_scale": 1.0, "logit_scale": 1.0, "logit_cap": 0.0}
        said |= {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}
        kinds = [layer.kind for layer in self.layers]
        return said if set(kinds) <= {"attention"} else {**said, "layers": kinds}

    def qkv_part(self, part: str) -> slice:
        """The columns of qkv that hold part q, k or v, in the usual layer."""
        q, kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[part]


INNER = ("layers", "norm", "embed_scale", "logit_scale", "logit_cap", "out_norm", "per_layer", "notes")


def read_arch(model: ModelFile) -> Arch:
    """Read the architecture, claim every tensor and hold it to its shape; FileError names what is missing or unread."""
    family, name = family_of(model), str(model.key("general.architecture"))
    kind = "adapter" if name == "controlvector" else str(model.key("general.type", "model"))
    if kind in KINDS or name == "clip":
        raise FileError(f"{model.path.name} is {KINDS.get(kind, KINDS['mmproj'])}.")
    if model.key("general.architecture") is None:
        raise FileError(f"{model.path.name} has no key general.architecture: its tensors are not said to be a model. "
                        "Give a model's own file, or convert it again.")
    if name in REFUSED:
        raise ArchError(f"{model.path.name} holds architecture {quote_name(name)}: {REFUSED[name]}. "
                        f"{ELSEWHERE}")
    if family is None:
        raise ArchError(f"{model.path.name} holds architecture {quote_name(name)}, which is none of the {len(ARCHS)} "
                        f"that this build runs. {ELSEWHERE}")
    if "token_embd.weight" not in model.weights:
        raise FileError(f"{model.path.name} has no tensor token_embd.weight: a vocabulary without a model?")
    facts = FileFacts(model, name)
    if facts.value("attention.causal", True) is False:
        raise FileError(f"{model.path.name}: attention.causal is false, so that there is no next token. It is not run.")
    d_model, eps = facts.size("embedding_length"), _eps(facts, family)
    whole, layers = _claim(facts, family)
    notes = facts.refuse_unread(len(layers), family.notes)
    return Arch(
        name=name, n_layer=len(layers), d_model=d_model, n_vocab=model.weight("token_embd.weight").shape[0],
        n_ctx=facts.size("context_length", 2048), eps=eps, tied="output.weight" not in model.weights,
        layers=tuple(layers), norm=family.norm, notes=tuple(notes), **_usual(family, layers), **whole)


def unread_tensors(model: ModelFile) -> list[str]:
    """Name the tensors that a forward of its family would not read; FileError where the family is not known, or a
    tensor or key that it needs is missing or does not fit."""
    family = family_of(model)
    if family is None or "token_embd.weight" not in model.weights:
        raise FileError(f"{model.path.name} is no model of a family that this build knows.")
    facts = FileFacts(model, str(model.key("general.architecture")))
    _claim(facts, family)
    return [name for name in model.weights if name not in facts.claimed]


def _claim(facts: FileFacts, family: Family) -> tuple[dict[str, Any], list[Layer]]:
    """Claim every tensor of the family: the fields of the whole model, and the layers."""
    n_layer = facts.size("block_count") - facts.size("nextn_predict_layers", 0, least=0)
    n_vocab, d_model = facts.model.weight("token_embd.weight").shape[0], facts.size("embedding_length")
    whole, layers = _claim_whole(facts, family, n_vocab, d_model), list[Layer]()
    for index in range(n_layer):
        layers.append(resolve_layer(facts, family, index, n_layer, layers))
    return whole, layers


def family_of(model: ModelFile) -> Family | None:
    """The family of the file's architecture; None where this build does not know it."""
    name = model.key("general.architecture")
    return ARCHS.get(name) if isinstance(name, str) else None


def head_width(model: ModelFile) -> int:
    """Channels of a head; FileError."""
    facts = FileFacts(model, str(model.key("general.architecture")))
    usual = facts.size("embedding_length") // facts.size("attention.head_count")
    return facts.size("attention.key_length", usual)


def layer_weights(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor that a layer of the usual decoder must have, under its name after blk.N."""
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


def stage_weights(model: ModelFile, layer: Layer | None, stage: str) -> list[str]:
    """Name the tensors that a stage of a layer, or of the whole model, reads, those the file has."""
    row, prefix = stage_named(stage), "" if layer is None else layer.prefix
    names = row.weights if layer is None else ()
    if layer is not None:
        node = layer.nodes.get(stage)
        names = () if node is None else node.weights
    fulls = (f"{prefix}{name}{part}" for name in names for part in (".weight", ".bias", ""))
    found = [full for full in fulls if full in model.weights]
    tied = f"{prefix}{row.tied}.weight"
    return [tied] if not found and tied in model.weights else found


# --- the whole model -------------------------------------------------------------------------------------------------


def _eps(facts: FileFacts, family: Family) -> float:
    keys = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
    first, second = keys if family.norm == "rms" else keys[::-1]
    key = second if facts.value(first) is None and facts.value(second) is not None else first
    eps = float(facts.number(key))
    if not 0 <= eps < 1:
        raise FileError(f"{facts.model.path.name}: {key} is {eps}; a small positive number is needed.")
    return eps


def _claim_whole(facts: FileFacts, family: Family, n_vocab: int, d_model: int) -> dict[str, Any]:
    """Claim the tensors that belong to no layer; returns the fields that they and the keys decide."""
    facts.hold("token_embd.weight", n_vocab, d_model)
    out_norm = family.out_norm if facts.has(family.out_norm) else "output_norm"
    if family.norm != "plain":
        facts.hold(f"{out_norm}.weight", d_model)
        facts.hold(f"{out_norm}.bias", d_model, needed=False)
    facts.linear("output", n_vocab, d_model, needed=False)
    if out_norm != "token_embd_norm":  # after the embedding
        facts.hold("token_embd_norm.weight", d_model, needed=False)
        facts.hold("token_embd_norm.bias", d_model, needed=False)
    if facts.has("position_embd"):
        facts.hold("position_embd.weight", facts.shape("position_embd")[0], d_model)
    n, n_layer = 0, facts.size("block_count")
    if facts.has("per_layer_token_embd"):
        n = facts.size("embedding_length_per_layer_input")
        facts.hold("per_layer_token_embd.weight", n_vocab, n * n_layer)
        facts.linear("per_layer_model_proj", n * n_layer, d_model)
        facts.hold("per_layer_proj_norm.weight", n)

    def read(key: str) -> float:
        """A key of the family; 1 (no scale) where the family has none, or it says nothing."""
        return (facts.real(key, family.reads[key]) if key in family.reads else 1.0) or 1.0

    scale = read("logit_scale")
    cap = "final_logit_softcapping"
    return {"embed_scale": math.sqrt(d_model) if family.sqrt_d else read("embedding_scale"),
            "logit_scale": 1 / scale if family.logit == "divide" else scale, "out_norm": f"{out_norm}.weight",
            "logit_cap": facts.real(cap, family.reads[cap]) if cap in family.reads else 0.0, "per_layer": n}


def _usual(family: Family, layers: list[Layer]) -> dict[str, Any]:
    """The sizes of the first layer with attention, and of the first with a feed-forward."""
    a = next((layer.attention for layer in layers if layer.attention is not None), None)
    f = next((layer.ffn for layer in layers if layer.ffn is not None), None)
    e = None if f is None else f.experts
    return {"n_head": a.n_head if a else 0, "n_kv_head": a.n_kv if a else 0, "head_dim": a.width if a else 0,
            "rope": a.rope if a is not None and a.rope is not None else Rope(1e4, a.width if a else 0, family.pairing),
            "qk_norm": bool(a and a.q_norm), "d_ff": 0 if f is None else f.width or (e.width if e else 0)}
