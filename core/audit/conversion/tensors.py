"""Hold each tensor of a file to its original: equal, rounded as its type rounds, or different and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

import numpy as np

from core.audit.conversion.low_rank import has_same_values, rank_of_difference
from core.audit.conversion.mistakes import mistakes_of
from core.audit.conversion.plan import TIED, Expected, Plan, as_weight, fit_shape
from core.audit.conversion.siblings import find_sibling
from core.audit.conversion.sizes import whole
from core.audit.conversion.steps import DoesNotFit
from core.audit.conversion.words import about_original, layer_of
from core.audit.finding import Finding, Strength
from core.audit.weights.describe_diff import describe
from core.audit.weights.description import Pair
from core.audit.weights.rounding_slope import Noise, Survey, noise_between, survey
from core.audit.weights.survey import read_rows, row_shape
from core.formats.model_file import ModelFile
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import IsCancelled

COMPUTED = 2.0**-22  # relative error of a step that computes (exp, a product) in another library
COMPUTING = ("neg_exp", "exp", "log", "attention_in", "attention_out", "key", "mlp_gate", "mlp_down", "ssm_in",
             "ssm_out", "lm_head", "embedding")
RULE = "each tensor is its original's, with the transforms of its family, as its type rounds"
VAGUE = ("size", "shape", "merge")
MOST_VAGUE = 16      # tensors that are searched for a known mistake before one is found
LOOSE, FAR = 0.5, 16.0  # relative gap of a row, and times the rounding: beyond it the whole need not be read
BITS_SLOPE, BITS_AT_1 = 0.95, 0.75  # log2 of a type's error by its bits a weight, where nobody measured it


class State(StrEnum):
    """How a tensor stands beside its original."""

    EQUAL = "equal"
    ROUNDED = "rounded"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Compared:
    """One tensor beside its original. finding: set where it is different."""

    name: str
    state: State
    finding: Finding | None = None


def compare_tensors(plan: Plan, file: ModelFile, cancelled: IsCancelled) -> Iterator[Compared]:
    """Compare every tensor that both sides have, in the file's order.

    After MOST_VAGUE tensors that differ in no known way and none that does, the others are only sized: another model.
    """
    vague, known = 0, False
    for name, weight in file.weights.items():
        if cancelled():
            return
        item = plan.expected.get(name)
        if item is not None:
            found = _compare(plan, item, weight, file, known or vague < MOST_VAGUE, cancelled)
            if found.finding is not None:
                vague, known = vague + 1, known or found.finding.kind not in VAGUE
            yield found
        elif name in plan.computed:
            yield _compare_computed(plan, weight, file, cancelled)


def _compare(
    plan: Plan, item: Expected, stored: Weight, file: ModelFile, searches: bool, cancelled: IsCancelled
) -> Compared:
    try:
        wanted = fit_shape(plan.build(item), stored.shape)
    except DoesNotFit as error:
        text = f"its original cannot be made into it: {error}"
        return Compared(item.name, State.DIFFERENT, _finding(item, "shape", text))
    found = _judge(wanted, stored, noise_of(item, wanted, stored), cancelled)
    if isinstance(found, State):
        return Compared(item.name, found)
    if not searches and found is not None:
        text = f"differs by {found.relative:.2g} relative"
        return Compared(item.name, State.DIFFERENT, _finding(item, "size", text, found.relative))
    return Compared(item.name, State.DIFFERENT, _differs(plan, item, wanted, stored, file, found, cancelled))


def noise_of(item: Expected, wanted: Weight, stored: Weight) -> Noise:
    """What the file's type leaves: the original is exact where its type is plain; a computed step has its own error."""
    noise = noise_between(stored, stored) if QUANTS[wanted.quant].is_plain else noise_between(wanted, stored)
    error = QUANTS[stored.quant].error
    if error is None:
        bits = 8 * QUANTS[stored.quant].block_bytes / QUANTS[stored.quant].block
        error = min(0.7, 2.0 ** (BITS_AT_1 - BITS_SLOPE * bits))
    elif not QUANTS[wanted.quant].is_plain:
        error = noise.error
    if any(step in COMPUTING for step in item.steps) or item.merge not in (0.0, 1.0):
        error = max(error, COMPUTED)
    return replace(noise, error=error, same_type=wanted.quant == stored.quant)


def _judge(wanted: Weight, stored: Weight, noise: Noise, cancelled: IsCancelled) -> State | Survey | None:
    """Equal, rounded, the survey of what differs, or None where the shapes do."""
    if wanted.shape != stored.shape:
        return None
    if wanted.quant == stored.quant and np.array_equal(wanted.data, stored.data):
        return State.EQUAL
    found = survey(wanted, stored, noise, cancelled)
    if not found.unlike and not bool(found.rows.gg.any()):
        return State.EQUAL
    return found if found.faults else State.ROUNDED


def _is_made_as(plan: Plan, item: Expected, other: Expected, stored: Weight, cancelled: IsCancelled) -> bool:
    """Whether a tensor of the file (item) is made as another, within its rounding and that of what it computes."""
    try:
        wanted = fit_shape(plan.build(other), stored.shape)
    except DoesNotFit:
        return False
    if wanted.shape != stored.shape:
        return False
    noise = noise_of(other, wanted, stored)
    if set(item.steps) & set(COMPUTING):
        noise = replace(noise, error=max(noise.error, COMPUTED))
    return _is_alike_at_first(wanted, stored, noise) and isinstance(_judge(wanted, stored, noise, cancelled), State)


def _is_alike_at_first(wanted: Weight, stored: Weight, noise: Noise) -> bool:
    """Whether a few rows are near, before the whole is read."""
    n_row, _ = row_shape(stored)
    for row in sorted({0, n_row // 3, n_row - 1}):
        x, y = read_rows(wanted, row, row + 1).double(), read_rows(stored, row, row + 1).double()
        size, gap = float(x.square().sum()), float((y - x).square().sum())
        if not gap <= max(LOOSE, FAR * noise.error) ** 2 * size + 1e-12:
            return False
    return True


def _differs(
    plan: Plan, item: Expected, wanted: Weight, stored: Weight, file: ModelFile, found: Survey | None,
    cancelled: IsCancelled,
) -> Finding:
    """Say how: by a converter's known mistake, as another tensor's, or by the pattern of the difference."""
    measured = found.relative if found is not None else None
    for mistake in mistakes_of(item, any(name in plan.deltas for name in item.sources)):
        if _is_made_as(plan, item, mistake.item, stored, cancelled):
            return _finding(item, mistake.kind, mistake.sentence, measured)
    told = find_sibling(plan, item, stored, file, lambda other: _is_made_as(plan, item, other, stored, cancelled))
    if told is not None:
        return _finding(item, told[0], told[1], measured)
    if found is None:
        return _finding(item, "shape", f"is {list(stored.shape)}; its original makes {list(wanted.shape)}")
    heads = tuple(dict.fromkeys(n for n in (plan.sizes.head_dim, plan.sizes.k_width) if n))
    noise = noise_of(item, wanted, stored)
    mine = replace(file, weights={item.name: wanted})
    said = describe(Pair(wanted, stored, mine, file, noise, heads), found, cancelled)
    if said.kind in ("size", "cousin") and (rank := rank_of_difference(wanted, stored, noise)):
        return _finding(item, "merge", f"differs by a matrix of rank {rank}: a low-rank merge (LoRA) that one side has "
                        "and the other lacks; the merge had no effect, or another was merged", measured)
    if said.kind == "size" and has_same_values(wanted, stored, noise):
        return _finding(item, "reordered", "has the original's values, each of them, in another order", measured)
    sentence = about_original(said.sentence) + _expert_text(wanted, said.row)
    finding = _finding(item, said.kind.value, sentence, measured)
    return replace(finding, row=said.row, block=said.block)


def _expert_text(weight: Weight, row: int | None) -> str:
    """Which expert a row of a stacked tensor is of."""
    if row is None or len(weight.shape) < 3:
        return ""
    return f" (expert {row // prod(weight.shape[1:-1])})"


def _compare_computed(plan: Plan, stored: Weight, file: ModelFile, cancelled: IsCancelled) -> Compared:

    item = Expected(stored.name, (), ("exp",))
    wanted = as_weight(stored.name, plan.computed[stored.name])
    found = _judge(wanted, stored, noise_of(item, wanted, stored), cancelled)
    if isinstance(found, State):
        return Compared(stored.name, found)
    if found is None:
        text = f"is {list(stored.shape)}; the configuration's RoPE makes {list(wanted.shape)}"
        return Compared(stored.name, State.DIFFERENT, _finding(item, "shape", text))
    if bool((read_rows(stored, 0, 1) == 1).all()):
        text = "is all ones: the RoPE scaling of the configuration is not in it"
        return Compared(stored.name, State.DIFFERENT, _finding(item, "rope factors", text, found.relative))
    pair = Pair(wanted, stored, replace(file, weights={}), file, noise_of(item, wanted, stored))
    said = describe(pair, found, cancelled)
    text = about_original(said.sentence)
    return Compared(stored.name, State.DIFFERENT, _finding(item, said.kind.value, text, found.relative))


def _finding(item: Expected, kind: str, text: str, measured: float | None = None) -> Finding:
    measured = None if measured is None or not np.isfinite(measured) else measured
    return Finding(kind, Strength.PROOF, f"{item.name}: {text}", RULE, measured, item.name, layer_of(item.name))


def _shares_keys(plan: Plan, name: str) -> bool:
    """Whether a layer takes the keys and values of an earlier one (Gemma 4), so that its own are not written."""
    n, shared = (whole(plan.sizes.config.get(k)) for k in ("num_hidden_layers", "num_kv_shared_layers"))
    layer = layer_of(name)
    return bool(shared) and layer is not None and layer >= n - shared and (".attn_k" in name or ".attn_v." in name)


def presence_findings(plan: Plan, file: ModelFile) -> list[Finding]:
    """Tensors that one side lacks. Where the original has names that no table knows, an extra tensor is no proof."""
    found = []
    for name, item in plan.expected.items():
        if name not in file.weights and not _shares_keys(plan, name):
            what = "bias dropped" if name.endswith(".bias") else "missing tensor"
            why = "the bias was dropped: " if name.endswith(".bias") else ""
            found.append(_finding(item, what, f"{why}its original has {item.sources[0]}, and the file lacks it"))
    for name in plan.computed:
        if name not in file.weights:
            text = "the configuration's RoPE scaling needs it, and the file lacks it"
            found.append(_finding(Expected(name, ()), "missing tensor", text))
    extra = [n for n in file.weights if n not in plan.expected and n not in plan.computed]
    if plan.unknown:
        return found
    known = (TIED, "rope_freqs.weight")
    return found + [_finding(Expected(name, ()), "extra tensor", "no tensor of the original makes it")
                    for name in extra if name not in known]
