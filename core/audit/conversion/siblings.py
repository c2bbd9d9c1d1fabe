"""Find which other tensor of the original a file's tensor is: of the same layer first, then the same role elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.audit.conversion.plan import Expected, Plan
from core.audit.conversion.words import layer_of
from core.formats.model_file import ModelFile
from core.quant.weight import Weight

MOST = 160  # tensors that are tried; each is made and compared


def find_sibling(
    plan: Plan, item: Expected, stored: Weight, file: ModelFile, is_made_as: Callable[[Expected], bool]
) -> tuple[str, str] | None:
    """Say of which other tensor the file's values are: kind and sentence; None where of none."""
    for other in _candidates(plan, item, file):
        if is_made_as(Expected(other.name, other.sources, other.steps, other.merge)):
            return _told(item.name, other.name)
    experts = _other_experts(item)
    return next((told for changed, told in experts if is_made_as(changed)), None)


def _candidates(plan: Plan, item: Expected, file: ModelFile) -> list[Expected]:
    """Other tensors that the file holds in one shape, the likeliest first."""
    shape, layer, role = file.weights[item.name].shape, layer_of(item.name), item.name.split(".")[2:]
    same = [e for n, e in plan.expected.items() if n != item.name and n in file.weights
            and file.weights[n].shape == shape]
    near = sorted(same, key=lambda e: (layer_of(e.name) != layer, e.name.split(".")[2:] != role))
    return near[:MOST]


def _told(name: str, other: str) -> tuple[str, str]:
    layer, there = layer_of(name), layer_of(other)
    if layer == there:
        roles = {name.split(".")[-2].split("_exps")[0], other.split(".")[-2].split("_exps")[0]}
        if {part.removesuffix("_shexp") for part in roles} == {"ffn_gate", "ffn_up"}:
            return "gate and up exchanged", f"is the original's {other}: gate and up exchanged"
        return "exchanged", f"is the original's {other}: exchanged, or under a wrong name"
    if name.split(".")[2:] == other.split(".")[2:]:
        return "another layer's", f"is layer {there}'s of the original ({other})"
    return "another tensor's", f"is the original's {other}"


def _other_experts(item: Expected) -> list[tuple[Expected, tuple[str, str]]]:
    """The experts of one stack in another order: reversed, or by the text of their numbers."""
    n = len(item.sources)
    if n < 2:
        return []
    found = []
    text = "experts' order"
    found.append((replace(item, sources=item.sources[::-1]), (text, "its experts stand in reversed order")))
    by_text = tuple(sorted(item.sources))
    if by_text != item.sources:
        found.append((replace(item, sources=by_text), (text, "its experts are ordered by the text of their numbers "
                                                       "(0, 1, 10, 11, 2)")))
    return found
