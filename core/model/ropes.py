"""Say how RoPE turns the heads of a layer, from the family's row and the file's keys."""

from __future__ import annotations

import math

from core.formats.architectures import Family
from core.formats.model_file import ModelFile
from core.model.file_facts import FileFacts
from core.model.layers import Rope
from core.system.errors import FileError

PAIRINGS = {0: "adjacent", 2: "halves"}  # .apr's rope_type
SCALINGS = ("none", "linear", "yarn")  # llama3's scaling comes as the tensor rope_freqs, Phi's as rope_factors_*


def pairing_said(model: ModelFile) -> str | None:
    """The RoPE pairing that an .apr states; None where the file says none, or one that does not exist."""
    kind = model.key("apr.rope_type")
    return PAIRINGS.get(kind) if isinstance(kind, int) else None


def resolve_rope(facts: FileFacts, family: Family, width: int, windowed: bool) -> Rope:
    """Return the RoPE of a head of that width; FileError."""
    model = facts.model
    dim, base = facts.size("rope.dimension_count", width), facts.real("rope.freq_base", 10000.0)
    if windowed:
        dim = facts.size("rope.dimension_count_swa", dim)
        base = facts.real("rope.freq_base_swa", family.window_base or base)
    context = facts.size("context_length", 2048)
    original = facts.size("rope.scaling.original_context_length", context)
    scaling, factor = _scaling(facts)
    attention = facts.real("rope.scaling.attn_factor", 1.0)
    is_plain = windowed and family.window_plain
    if is_plain:
        scaling, attention = "none", 1.0
    rope = Rope(
        base=base, dim=dim, pairing=_pairing(model) or family.pairing, scaling=scaling, factor=factor,
        original_context=original, attention_factor=attention,
        beta_fast=facts.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=facts.real("rope.scaling.yarn_beta_slow", 1.0),
        factors=_factors(facts, is_plain, context > original, dim),
        mscale=not (family.log_mscale and facts.real("rope.scaling.yarn_log_multiplier", 0.0)))
    numbers = (rope.base, rope.factor, rope.attention_factor, rope.beta_fast, rope.beta_slow)
    if rope.dim > width or rope.dim % 2 or not all(0 < x < math.inf for x in numbers) or (
            scaling == "yarn" and rope.base == 1):
        raise FileError(f"{model.path.name}: RoPE of {rope.dim} channels, base {rope.base}, factor {rope.factor} "
                        f"cannot turn heads of {width}.")
    return rope


def _pairing(model: ModelFile) -> str | None:
    kind, said = model.key("apr.rope_type"), pairing_said(model)
    if kind is not None and said is None:
        raise FileError(f"{model.path.name}: rope_type {kind!r}; 0 (adjacent pairs) or 2 (split halves) is needed.")
    return said


def _scaling(facts: FileFacts) -> tuple[str, float]:
    """The kind of scaling and its factor; older files say rope.scale_linear."""
    scaling, legacy = str(facts.value("rope.scaling.type", "none")), facts.real("rope.scale_linear", 1.0)
    if scaling == "none" and legacy not in (0.0, 1.0) and facts.value("rope.scaling.type") is None:
        return "linear", legacy
    if scaling == "longrope":  # its factors are tensors
        return "none", 1.0
    if scaling not in SCALINGS:
        raise FileError(f"{facts.model.path.name}: RoPE scaling {scaling!r}; this build knows "
                        f"{', '.join(SCALINGS)} and rope_freqs.")
    return scaling, facts.real("rope.scaling.factor", 1.0)


def _factors(facts: FileFacts, is_plain: bool, beyond: bool, dim: int) -> str | None:
    """Claim the tensors that divide the frequencies; returns the one that serves."""
    wide = [facts.hold(f"rope_factors_{each}.weight", dim // 2, needed=False) for each in ("long", "short")]
    if any(wide):
        name = f"rope_factors_{'long' if beyond else 'short'}.weight"
        facts.hold(name, dim // 2)
        return name
    if is_plain:
        return None
    return "rope_freqs.weight" if facts.hold("rope_freqs.weight", dim // 2, needed=False) else None
