"""Compute what a wrong kernel of a recurrent mixer or of latent attention leaves. Never part of the forward.

A recurrence is made once more by the layer's own mixer, from the stage's inputs, by other tensors or sizes.
Shape letters: T tokens, D model, N heads, H channels of a query or key, the last P of which RoPE turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.faults.stage_inputs import StageInputs
from core.faults.wrong_ops import normed, other_attention, other_products, turned
from core.faults.wrong_ops import other_rope as usual_rope
from core.model.experts import route
from core.model.layers import DELTA_NET, RECURRENT, SHORT_CONV, Layer
from core.model.matmul import Ask, multiply
from core.model.mixers import MIXERS
from core.model.mixers.attention import heat
from core.model.model import Cache, Model

Change = Callable[[Tensor], Tensor]
FORGETS = -1e9  # in ssm_a's place: e^(dt a) is 0


@dataclass(frozen=True, slots=True)
class Altered(Model):
    """A model some of whose small tensors are read wrongly: what becomes of each, by its full name."""

    changes: Mapping[str, Change] = field(default_factory=dict)

    def vector(self, name: str) -> Tensor | None:
        """The tensor, as it is read here."""
        found = Model.vector(self, name)
        return found if found is None or name not in self.changes else self.changes[name](found)


def decays(layer: Layer) -> bool:
    """Whether the layer has a state that decays."""
    return any(mixer in RECURRENT and mixer != SHORT_CONV for mixer in layer.mixers)


def has_key_heads(layer: Layer) -> bool:
    """Whether value heads share key heads, in an order that a kernel may get wrong."""
    return DELTA_NET in layer.mixers and layer.ssm is not None and 1 < layer.ssm.groups < layer.ssm.rank


def no_decay(inputs: StageInputs) -> Tensor:
    """The state does not decay."""
    return _once_more(inputs, {"ssm_a": torch.zeros_like})


def no_state(inputs: StageInputs) -> Tensor:
    """The state of the tokens before is lost at every token."""
    return _once_more(inputs, {"ssm_a": lambda a: torch.full_like(a, FORGETS)})


def no_convolution(inputs: StageInputs) -> Tensor:
    """The convolution sees the running token alone."""
    def last(w: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(w[..., :-1]), w[..., -1:]), -1)
    return _once_more(inputs, {"ssm_conv1d.weight": last, "shortconv.conv.weight": last})


def other_key_heads(inputs: StageInputs) -> Tensor:
    """Value heads read the key heads of the other order: j % K for j // (V / K)."""
    assert inputs.of.ssm is not None
    return _once_more(inputs, {}, replace(inputs.of, ssm=replace(inputs.of.ssm, tiled=not inputs.of.ssm.tiled)))


def has_choice_bias(layer: Layer) -> bool:
    """Whether experts are chosen by their scores and a bias."""
    return layer.ffn is not None and layer.ffn.experts is not None and layer.ffn.experts.choice


def may_normalise(layer: Layer) -> bool:
    """Whether the chosen experts' weights sum to 1 only where they are made to."""
    return layer.ffn is not None and layer.ffn.experts is not None and layer.ffn.experts.router != "softmax_chosen"


def other_route(inputs: StageInputs, biased: bool = True, other_norm: bool = False) -> Tensor:
    """The experts chosen without their bias, or weighed with the sum made 1 where it is not, and the other way."""
    f = inputs.of.ffn
    assert f is not None and f.experts is not None
    e = replace(f.experts, norm=f.experts.norm != other_norm)
    bias_E = inputs.vector("exp_probs_b.bias").flatten() if e.choice and biased else None
    weights_TE = route(e, inputs.input(), bias_E)
    return weights_TE * inputs.vector("ffn_down_exps.scale") if e.down_scale else weights_TE


def other_rope(inputs: StageInputs, pairing: bool = False, offset: int = 0, base: float = 1.0) -> Tensor:
    """RoPE as wrong_ops has it wrong; latent attention turns the last channels only, and one key for all heads."""
    a = inputs.attention
    if a.mla is None or a.rope is None:
        return usual_rope(inputs, pairing, offset, base)
    value_TNH = inputs.value.view(len(inputs.value), a.n_head, -1)
    qkv_TQ = inputs.inputs["qkv"].to(value_TNH)
    x_TNP = qkv_TQ[:, None, -a.mla.rope :]
    if inputs.stage == "q_rope":
        x_TNP = qkv_TQ[:, a.part("q")].view(value_TNH.shape)[..., -a.mla.rope :]
    x_TNP = turned(inputs, a.rope, x_TNP, pairing, offset, base)
    if a.temperature is not None and inputs.stage == "q_rope":
        x_TNP = x_TNP * heat(a.temperature, torch.arange(len(x_TNP))).to(x_TNP)[:, None, None]
    return torch.cat((value_TNH[..., : -a.mla.rope], x_TNP.expand(-1, a.n_head, -1)), -1).flatten(1)


def right(inputs: StageInputs) -> Tensor:
    """The stage as the wrong operations compute it, with nothing wrong: what a bug that changes nothing leaves."""
    match inputs.node.operation:
        case "linear":
            return other_products(inputs, lambda s, name, x: x @ s.matrix(name).T)
        case "norm":
            return normed(inputs, inputs.input(), inputs.model.arch.eps)
        case "rope":
            return other_rope(inputs)
        case "attention":
            return other_attention(inputs)
        case "route":
            return other_route(inputs)
        case "recurrence":
            return _once_more(inputs, {})
    return inputs.value


def _once_more(inputs: StageInputs, changes: Mapping[str, Change], layer: Layer | None = None) -> Tensor:
    """The stage's value by the layer's own recurrent mixer; products before its inputs are not needed, nor made."""
    layer, node, old = layer or inputs.of, inputs.node, inputs.model
    model = Altered(old.file, old.arch, old.device, inputs.value.dtype, old.resident, old.kv,
                    {layer.prefix + name: change for name, change in changes.items()})
    waiting, made = set(node.inputs), list[Tensor]()

    def tap(_: int | None, stage: str, value: Tensor) -> Tensor:
        if stage == inputs.stage:
            made.append(value)
        if stage not in node.inputs:
            return value
        waiting.discard(stage)
        return inputs.inputs[stage].to(value)

    mixer = next(name for name in layer.mixers if name in RECURRENT)
    h_TD = inputs.value.new_zeros(len(inputs.value), old.arch.d_model)
    steps = MIXERS[mixer](model, layer, h_TD, Cache(), tap)
    ask = next(steps)
    while not made:
        y = multiply(ask.weight, [Ask(ask.x, "f32", plain=True)], lambda: None)[0] if not waiting else (
            ask.x.new_zeros(len(ask.x), ask.weight.shape[0]))
        ask = steps.send(y)
    return made[0]
