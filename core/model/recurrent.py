"""Say the sizes of a layer's recurrent mixer, from the keys, and claim its tensors. The computing: mixers/."""

from __future__ import annotations

from dataclasses import replace

from core.formats.architectures import Family
from core.model.file_facts import Facts
from core.model.layers import DELTA_NET, MAMBA2, SHORT_CONV, Layer, Ssm
from core.system.errors import FileError


def resolve_recurrent(facts: Facts, family: Family, layer: Layer, d_model: int) -> Ssm:
    """Say the sizes of a recurrent mixer, and claim its tensors."""
    p, mixer = layer.prefix, layer.mixers[0]
    if mixer == SHORT_CONV:
        return _short_conv(facts, p, d_model)
    inner, rank, state = (facts.size(f"ssm.{k}") for k in ("inner_size", "time_step_rank", "state_size"))
    s = Ssm(facts.size("ssm.conv_kernel"), inner, state, rank, facts.size("ssm.group_count", 1, least=0) or 1,
            family.tiled)
    keys, each = 2 * s.groups * state, dict[str, tuple[int, ...]]()
    if mixer == DELTA_NET:
        _even(facts, s, rank % s.groups or inner % rank)
        facts.linear(f"{p}attn_qkv", keys + inner, d_model)
        facts.linear(f"{p}attn_gate", inner, d_model)
        packed = facts.linear(f"{p}ssm_ba", 2 * rank, d_model, needed=False)
        s = replace(s, packed=packed)
        for name in () if packed else ("ssm_beta", "ssm_alpha"):
            facts.linear(f"{p}{name}", rank, d_model)
        channels = keys + inner
        each = {"ssm_dt.bias": (rank,), "ssm_a": (rank,), "ssm_norm.weight": (inner // rank,)}
    elif mixer == MAMBA2:
        _even(facts, s, rank % s.groups or inner % rank)
        facts.linear(f"{p}ssm_in", 2 * inner + keys + rank, d_model)
        channels, each = inner + keys, {"ssm_dt.bias": (rank,), "ssm_a": (rank,), "ssm_d": (rank,)}
        facts.hold(f"{p}ssm_norm.weight", s.groups, inner // s.groups, needed=False, loose=True)
    else:
        facts.linear(f"{p}ssm_in", 2 * inner, d_model)
        facts.linear(f"{p}ssm_x", rank + 2 * state, inner)
        facts.linear(f"{p}ssm_dt", inner, rank)
        for name, n in (("ssm_dt_norm", rank), ("ssm_b_norm", state), ("ssm_c_norm", state)):
            facts.hold(f"{p}{name}.weight", n, needed=False)
        channels, each = inner, {"ssm_a": (inner, state), "ssm_d": (inner,)}
    facts.hold(f"{p}ssm_conv1d.weight", channels, s.conv, loose=True)
    facts.hold(f"{p}ssm_conv1d.bias", channels, needed=False)
    for name, shape in each.items():
        facts.hold(f"{p}{name}", *shape, loose=True)
    facts.linear(f"{p}ssm_out", d_model, inner)
    return s


def _short_conv(facts: Facts, prefix: str, d_model: int) -> Ssm:
    s = Ssm(facts.size("shortconv.l_cache"), d_model)
    facts.linear(f"{prefix}shortconv.in_proj", 3 * d_model, d_model)
    facts.hold(f"{prefix}shortconv.conv.weight", d_model, s.conv, loose=True)
    facts.linear(f"{prefix}shortconv.out_proj", d_model, d_model)
    return s


def _even(facts: Facts, s: Ssm, rest: int) -> None:
    if rest:
        raise FileError(f"{facts.model.path.name}: {s.rank} heads of {s.inner} channels "
                        f"cannot share {s.groups} groups.")
