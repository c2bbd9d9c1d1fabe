"""The table of value faults: each can be planted through the tap, and names a bad value that looks alike (guess_fault).

A planted bug never lives in the forward: its wrong value is computed outside it, from the stage's inputs if need be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from core.faults import wrong_mixers as mixers
from core.faults import wrong_ops as wrong
from core.faults.stage_inputs import StageInputs
from core.model.layers import Layer
from core.model.model import Model, Tap
from core.model.stages import PREVIOUS, STAGES, TRUNK, Place, place_text, stage_named, stages_of
from core.system.errors import UsageError

EVERY = tuple(s.name for s in STAGES)
LINEAR = tuple(s.name for s in STAGES if s.operation == "linear" and not s.whole)
PRODUCTS = stages_of("product")
NORMS, ROPES, RESIDUALS = stages_of("norm"), stages_of("rope"), stages_of("residual")
ATTENTION, ACTIVATION, RECURRENCE = stages_of("attention"), stages_of("activation"), stages_of("recurrence")
ROUTES = stages_of("route")
F16_MAX = 65504.0
GELUS = ("gelu", "gelu_erf")


@dataclass(frozen=True, slots=True)
class ValueFault:
    """One kind of bug. apply: the wrong value [T, width]; stages where it can stand; its description in words.

    value_only: made from the value alone. where: the layers where it changes something.
    choice: no bug by itself but a declared way to compute; a guess, never planted.
    """

    apply: Callable[[StageInputs], Tensor]
    stages: tuple[str, ...]
    description: str
    value_only: bool = False
    choice: bool = False
    where: Callable[[Layer], bool] = lambda layer: True

    def stands(self, model: Model, layer: int | None, stage: str) -> bool:
        """Say whether it can stand at a place: the layer's own stage makes what the bug gets wrong."""
        node = model.arch.node(layer, stage)
        if node is None or stage not in self.stages:
            return False
        if self.value_only:
            return True
        if node.operation != stage_named(stage).operation or (layer is not None and not self.where(
                model.arch.layers[layer])):
            return False
        a = None if layer is None else model.arch.layers[layer].attention
        return a is None or a.own_k or stage not in (*ATTENTION, "k_rope")  # keys of another layer are no inputs


def _of_value(change: Callable[[Tensor], Tensor], description: str) -> ValueFault:
    return ValueFault(lambda inputs: change(inputs.value), EVERY, description, value_only=True)


def _stale(x: Tensor) -> Tensor:
    return torch.cat((x[:1], x[:-1]))


def _zero_channel(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 0] = 0.0
    return out


def _overflow(x: Tensor) -> Tensor:
    """Scaled so that the largest size passes float16's maximum, kept in float16, scaled back."""
    scale = 1.001 * F16_MAX / x.abs().nan_to_num(0, 0, 0).max().clamp(min=1e-30)
    return torch.where((x * scale).abs() > F16_MAX, torch.copysign(torch.full_like(x, float("inf")), x), x)


def _nan(x: Tensor) -> Tensor:
    out = x.clone()
    out[-1, 0] = float("nan")
    return out


VALUE_FAULTS = {
    "shift": _of_value(lambda x: torch.roll(x, 1, -1), "every channel stands one place on"),
    "negate": _of_value(lambda x: -x, "the sign is turned"),
    "swap": _of_value(lambda x: torch.roll(x, x.shape[-1] // 2, -1), "first and second half are exchanged"),
    "scale": _of_value(lambda x: x * 1.5, "it is 1.5 times too large"),
    "stale": _of_value(_stale, "each token has the value of the token before"),
    "zero-channel": _of_value(_zero_channel, "channel 0 is zero"),
    "overflow": _of_value(_overflow, "the largest value passed 65504 in float16 and became Inf"),
    "nan": _of_value(_nan, "the last token's channel 0 is NaN"),
    "drop-block": ValueFault(wrong.last_block_dropped, LINEAR, "the sum leaves out its last 32 inputs"),
    "transpose": ValueFault(wrong.transposed, LINEAR, "the weight is read transposed"),
    "no-bias": ValueFault(wrong.no_bias, LINEAR, "the bias is missing"),
    "bf16-sum": ValueFault(wrong.bf16_sum, LINEAR, "the running sum is kept in bfloat16"),
    "nibbles": ValueFault(wrong.nibbles_exchanged, LINEAR, "low and high nibbles of the weight are exchanged"),
    "scale-min": ValueFault(
        wrong.scale_and_min_exchanged, LINEAR, "scale and min of the K-quant blocks are exchanged"),
    "eps": ValueFault(wrong.wrong_eps, NORMS, "eps is 1e-3"),
    "norm-plus-one": ValueFault(wrong.norm_plus_one, NORMS, "the norm's weight is taken as weight + 1"),
    "gelu": ValueFault(partial(wrong.other_activation, act="gelu_erf"), ACTIVATION, "it is GELU, not SiLU",
                  where=lambda layer: layer.ffn is not None and layer.ffn.act not in GELUS),
    "silu": ValueFault(partial(wrong.other_activation, act="silu"), ACTIVATION,
                       "it is SiLU, not the family's activation",
                  where=lambda layer: layer.ffn is not None and layer.ffn.act != "silu"),
    "no-activation": ValueFault(wrong.gate_not_activated, PRODUCTS, "the gate is multiplied without its activation"),
    "rope-pairing": ValueFault(partial(mixers.other_rope, pairing=True), ROPES,
                               "RoPE pairs the channels the other way"),
    "rope-offset": ValueFault(partial(mixers.other_rope, offset=1), ROPES, "positions are one too high"),
    "rope-base": ValueFault(partial(mixers.other_rope, base=10.0), ROPES, "RoPE's base is ten times the model's"),
    "heads": ValueFault(partial(wrong.other_attention, heads_apart=True), ATTENTION,
                   "query heads read the wrong key-value heads",
                   where=lambda layer: layer.attention is not None and (
                       1 < layer.attention.n_kv < layer.attention.n_head)),
    "no-mask": ValueFault(partial(wrong.other_attention, causal=False), ATTENTION, "the causal mask is missing"),
    "no-window": ValueFault(partial(wrong.other_attention, windowed=False), ATTENTION, "the window is left out",
                       where=lambda layer: layer.attention is not None and bool(layer.attention.window)),
    "no-sinks": ValueFault(partial(wrong.other_attention, sinks=False), ATTENTION, "the sinks are left out",
                      where=lambda layer: layer.attention is not None and layer.attention.sinks),
    "no-scale": ValueFault(partial(wrong.other_attention, scaled=False), ATTENTION,
                      "the scores are not scaled by 1 / sqrt(head)",
                      where=lambda layer: layer.attention is not None and layer.attention.scale != 1),
    "no-conv": ValueFault(mixers.no_convolution, RECURRENCE, "the convolution sees the running token alone"),
    "no-decay": ValueFault(mixers.no_decay, RECURRENCE, "the state does not decay", where=mixers.decays),
    "no-state": ValueFault(mixers.no_state, RECURRENCE, "the state of the tokens before is lost", where=mixers.decays),
    "key-heads": ValueFault(mixers.other_key_heads, RECURRENCE, "value heads read the wrong key heads",
                       where=mixers.has_key_heads),
    "route-norm": ValueFault(partial(mixers.other_route, other_norm=True), ROUTES,
                        "the chosen experts' weights sum to 1 where they should not, or the other way",
                        where=mixers.may_normalise),
    "no-choice-bias": ValueFault(partial(mixers.other_route, biased=False), ROUTES,
                            "the experts are chosen without their bias", where=mixers.has_choice_bias),
    "no-residual": ValueFault(partial(wrong.residual_times, times=0), RESIDUALS, "the residual is missing"),
    "twice-residual": ValueFault(partial(wrong.residual_times, times=2), RESIDUALS, "the residual is added twice"),
    "q8": ValueFault(wrong.activations_in_8_bits, LINEAR,
                "its inputs were rounded to 8 bits, a block's scale crushed by its largest channel", choice=True),
}


def value_fault_table() -> str:
    """List the kinds that can be planted, a line each with the stages where they stand."""
    rows = [(kind, p.description, "any stage" if p.stages == EVERY else ", ".join(p.stages))
            for kind, p in VALUE_FAULTS.items() if not p.choice]
    return "\n".join(f"  {kind:<14} {description} ({stages})" for kind, description, stages in rows)


def parse_value_fault(text: str, n_layer: int) -> tuple[str, Place]:
    """Read KIND@LAYER.STAGE (KIND@STAGE for a whole-model stage); UsageError shows the table."""
    kind, _, where = text.partition("@")
    layer_text, dot, name = where.rpartition(".")
    if kind not in VALUE_FAULTS or VALUE_FAULTS[kind].choice or not where:
        raise UsageError(f"--plant {text}: no such kind. Write KIND@LAYER.STAGE with one of:\n{value_fault_table()}")
    stage = stage_named(name)
    if stage.name not in VALUE_FAULTS[kind].stages:
        stages = ", ".join(VALUE_FAULTS[kind].stages)
        raise UsageError(f"--plant {text}: {kind} cannot be planted at {stage.name}; it can at {stages}.")
    if stage.whole:
        if dot:
            raise UsageError(f"--plant {text}: {stage.name} belongs to the whole model; write {kind}@{stage.name}.")
        return kind, (None, stage.name)
    if layer_text not in map(str, range(n_layer)):
        raise UsageError(f"--plant {text}: {layer_text!r} is not a layer; the model has layers 0 to {n_layer - 1}.")
    return kind, (int(layer_text), stage.name)


def where_it_stands(kind: str, model: Model) -> str:
    """Say where a kind can be planted in a model."""
    layers = range(model.arch.n_layer)
    places = [f"{i}.{stage}" for i in layers for stage in VALUE_FAULTS[kind].stages
              if VALUE_FAULTS[kind].stands(model, i, stage)]
    return f"in this model it can at {', '.join(places[:8])}{' ...' if len(places) > 8 else ''}" if places else (
        "this model has no such stage")


def value_fault_tap(text: str, model: Model, whole: bool = True) -> Tap:
    """Return the tap that plants the named bug; it remembers the values that the bug's operation reads.

    whole: it sees a whole prompt, and raises UsageError where the bug leaves the value as it was.
    """
    kind, place = parse_value_fault(text, model.arch.n_layer)
    if not VALUE_FAULTS[kind].stands(model, *place):
        raise UsageError(f"--plant {text}: {kind} cannot be planted there; {where_it_stands(kind, model)}.")
    seen: dict[str, Tensor] = {}

    def tap(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if (layer, stage) == place:
            inputs = StageInputs(model, layer, stage, value, seen)
            value = VALUE_FAULTS[kind].apply(inputs)
            if whole and _is_same(inputs.value if VALUE_FAULTS[kind].value_only else mixers.right(inputs), value):
                raise UsageError(f"--plant {text} changes nothing here: after it, {place_text(place)} is what it was "
                                 "before, so that nothing could be found. Plant another kind, or at another place.")
        if stage in TRUNK:
            seen[PREVIOUS] = value
        if layer == place[0]:
            seen[stage] = value
        return value

    return tap


def _is_same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
