"""Say the sizes of a layer's recurrent mixer, from the keys, and claim its tensors. The computing: mixers/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.formats.architectures import Family
from core.model.file_facts import FileFacts
from core.model.layers import DELTA_NET, MAMBA, MAMBA2, SHORT_CONV, Layer, Ssm
from core.system.errors import FileError


def resolve_recurrent(facts: FileFacts, family: Family, layer: Layer, d_model: int) -> Ssm:
    """Say the sizes of a recurrent mixer, and claim its tensors."""
    p, mixer = layer.prefix, layer.mixers[0]
    if mixer == SHORT_CONV:
        s = Ssm(facts.size("shortconv.l_cache"), d_model)
        facts.linear(f"{p}shortconv.in_proj", 3 * d_model, d_model)
        facts.hold(f"{p}shortconv.conv.weight", d_model, s.conv, loose=True)
        facts.linear(f"{p}shortconv.out_proj", d_model, d_model)
        return s
    inner, rank, state = (facts.size(f"ssm.{k}") for k in ("inner_size", "time_step_rank", "state_size"))
    groups = facts.size("ssm.group_count", 1, least=0) or 1
    s = Ssm(facts.size("ssm.conv_kernel"), inner, state, rank, groups, family.tiled)
    if mixer != MAMBA and (rank % groups or inner % rank):
        raise FileError(f"{facts.model.path.name}: {rank} heads of {inner} channels cannot share {groups} groups.")
    s, channels = _CLAIMS[mixer](facts, p, s, d_model)
    facts.hold(f"{p}ssm_conv1d.weight", channels, s.conv, loose=True)
    facts.hold(f"{p}ssm_conv1d.bias", channels, needed=False)
    facts.linear(f"{p}ssm_out", d_model, inner)
    return s


def _delta_net(facts: FileFacts, p: str, s: Ssm, d_model: int) -> tuple[Ssm, int]:
    channels = 2 * s.groups * s.state + s.inner
    facts.linear(f"{p}attn_qkv", channels, d_model)
    facts.linear(f"{p}attn_gate", s.inner, d_model)
    packed = facts.linear(f"{p}ssm_ba", 2 * s.rank, d_model, needed=False)
    for name in () if packed else ("ssm_beta", "ssm_alpha"):
        facts.linear(f"{p}{name}", s.rank, d_model)
    for name, n in (("ssm_dt.bias", s.rank), ("ssm_a", s.rank), ("ssm_norm.weight", s.inner // s.rank)):
        facts.hold(p + name, n, loose=True)
    return replace(s, packed=packed), channels


def _mamba2(facts: FileFacts, p: str, s: Ssm, d_model: int) -> tuple[Ssm, int]:
    channels = s.inner + 2 * s.groups * s.state
    facts.linear(f"{p}ssm_in", s.inner + channels + s.rank, d_model)
    for name in ("ssm_dt.bias", "ssm_a", "ssm_d"):
        facts.hold(p + name, s.rank, loose=True)
    facts.hold(f"{p}ssm_norm.weight", s.groups, s.inner // s.groups, needed=False, loose=True)
    return s, channels


def _mamba(facts: FileFacts, p: str, s: Ssm, d_model: int) -> tuple[Ssm, int]:
    facts.linear(f"{p}ssm_in", 2 * s.inner, d_model)
    facts.linear(f"{p}ssm_x", s.rank + 2 * s.state, s.inner)
    facts.linear(f"{p}ssm_dt", s.inner, s.rank)
    facts.hold(f"{p}ssm_a", s.inner, s.state)
    facts.hold(f"{p}ssm_d", s.inner)
    for name, n in (("ssm_dt_norm", s.rank), ("ssm_b_norm", s.state), ("ssm_c_norm", s.state)):
        facts.hold(f"{p}{name}.weight", n, needed=False)
    return replace(s, normed=bool(facts.value("ssm.dt_b_c_rms", False))), s.inner


_CLAIMS: dict[str, Callable[[FileFacts, str, Ssm, int], tuple[Ssm, int]]] = {
    DELTA_NET: _delta_net, MAMBA2: _mamba2, MAMBA: _mamba}
