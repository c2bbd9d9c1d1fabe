"""Say what a layer's feed-forward is, from the family's row, the keys and the tensors. The computing: experts.py."""

from __future__ import annotations

from dataclasses import replace

from core.formats.architectures import Family
from core.model.file_facts import FileFacts
from core.model.layers import Experts, FeedForward
from core.system.errors import FileError

ROUTERS = {1: "softmax", 2: "sigmoid", 3: "softmax_chosen"}  # expert_gating_func


def resolve_feed_forward(facts: FileFacts, family: Family, prefix: str, index: int, d_model: int) -> FeedForward:
    """Return a layer's feed-forward, its tensors claimed; it has experts exactly where it has ffn_gate_inp."""
    numbers = tuple(float(facts.model.key(f"xielu.{k}")[index]) for k in ("alpha_p", "alpha_n", "beta", "eps")
                    ) if family.act == "xielu" else ()
    f = FeedForward(0, family.act, "none", numbers=numbers)
    if facts.has(f"{prefix}ffn_gate_inp"):
        experts = resolve_experts(facts, family, prefix, d_model)
        if not experts.own_norms:
            return replace(f, experts=experts)
        f = replace(f, experts=experts)
    width = facts.size("feed_forward_length", layer=index)
    gate = "none"
    if family.is_gated:
        joined = not facts.has(f"{prefix}ffn_gate") and facts.shape(f"{prefix}ffn_up")[0] == 2 * width
        gate = "joined" if joined else "split"
    if gate == "split":
        facts.linear(f"{prefix}ffn_gate", width, d_model)
    facts.linear(f"{prefix}ffn_up", width * (2 if gate == "joined" else 1), d_model)
    facts.linear(f"{prefix}ffn_down", d_model, width)
    return replace(f, width=width, gate=gate)


def resolve_experts(facts: FileFacts, family: Family, prefix: str, d_model: int) -> Experts:
    """Return a layer's experts, their tensors claimed."""
    n, used = facts.size("expert_count"), facts.size("expert_used_count")
    code = facts.number("expert_gating_func", 0)
    router = family.router if code == 0 else ROUTERS.get(code)
    groups = facts.size("expert_group_count", 1, least=0) or 1
    if router is None or used > n or n % groups:
        raise FileError(f"{facts.model.path.name}: {used} of {n} experts in {groups} groups, gating {code}; this build "
                        f"knows gating 1 (softmax), 2 (sigmoid) and 3 (softmax over the chosen).")
    down = facts.shape(f"{prefix}ffn_down_exps")
    width = down[-1]
    gate = "joined" if facts.has(f"{prefix}ffn_gate_up_exps") else "split" if family.is_gated else "none"
    facts.linear(f"{prefix}ffn_gate_inp", n, d_model)
    facts.linear(f"{prefix}ffn_down_exps", n, d_model, width)
    if gate == "joined":
        facts.linear(f"{prefix}ffn_gate_up_exps", n, 2 * width, d_model)
    else:
        for name in ("ffn_gate_exps", "ffn_up_exps") if gate == "split" else ("ffn_up_exps",):
            facts.linear(f"{prefix}{name}", n, width, d_model)
    e = Experts(
        n, used, router, width, gate, bool(facts.value("expert_weights_norm", family.router_norm)),
        facts.real("expert_weights_scale", 0.0) or 1.0, groups, facts.size("expert_group_used_count", groups, least=0)
        or groups, facts.hold(f"{prefix}exp_probs_b.bias", n, needed=False, loose=True), family.weight_first,
        facts.hold(f"{prefix}ffn_down_exps.scale", n, needed=False), own_norms=family.beside)
    if e.own_norms:
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            facts.hold(f"{prefix}{name}.weight", d_model)
        facts.hold(f"{prefix}ffn_gate_inp.scale", d_model)
    return _shared(facts, family, prefix, d_model, e)


def _shared(facts: FileFacts, family: Family, prefix: str, d_model: int, e: Experts) -> Experts:
    if not facts.has(f"{prefix}ffn_up_shexp"):
        return e
    width = facts.shape(f"{prefix}ffn_up_shexp")[0]
    if family.is_gated:
        facts.linear(f"{prefix}ffn_gate_shexp", width, d_model)
    facts.linear(f"{prefix}ffn_up_shexp", width, d_model)
    facts.linear(f"{prefix}ffn_down_shexp", d_model, width)
    name = f"{prefix}ffn_gate_inp_shexp.weight"
    return replace(e, shared=width, shared_gate=family.is_gated,
                   shared_router=facts.hold(name, d_model, needed=False, loose=True))
