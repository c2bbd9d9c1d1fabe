"""The bill of a quantised file: each tensor's share of the output's KL, with or without the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from core.damage.corpus import Corpus
from core.damage.exact import KEPT_LOGITS, Boundaries, boundaries, exact_bill, first_layer, swap_kl
from core.damage.gradient import Bill, ErrorSquare, add_to_bill
from core.damage.recipe import raised, recipe
from core.damage.result import EXACT, ORIGINAL, OWN_STEPS, Damage, Measured, TensorDamage
from core.damage.steps import rounding_variance
from core.model.matmul import expert_weight
from core.quant.dequantize import decode_rows
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.arrays import Floats
from core.system.cancel import IsCancelled
from core.system.errors import NotComparableError
from core.system.progress import Phase
from core.trace.events import Emit
from core.trace.run import SEED, Side

DRAWS = 2  # of a token at each position of a chunk
MOST_TOKENS = 512  # of the text of a bill; as many again are held out


@dataclass(frozen=True, slots=True)
class DamageOptions:
    """exact: swap one tensor at a time. budget: bytes that a recipe may add, None for no recipe."""

    exact: bool = False
    budget: int | None = None
    emit: Emit = lambda event: None
    cancelled: IsCancelled = lambda: False


def damage(side: Side, original: Side | None, text: Corpus, ask: DamageOptions) -> Damage:
    """Take the bill of a file; original: the same model before it was quantised. NotComparableError where it is not."""
    first, held = text.halves(MOST_TOKENS)
    weights = quantised_weights(side)
    if original is not None:
        refuse_other_shapes(side, original)
        weights = {name: w for name, w in weights.items() if not is_same(w, original.model.file.weight(name))}
    names = list(weights)
    truth = [] if original is None else _walk(original, first, ask)
    if ask.exact and original is not None:
        method = EXACT
        rows: dict[str, Floats] = {}
        costs = exact_bill(original, weights, truth, ask.cancelled, lambda name, at: ask.emit(
            Phase(f"swapping {name}, {at + 1} of {len(names)}", at + 1, len(names))))
    else:
        method = OWN_STEPS if original is None else ORIGINAL
        rows = own_rows(side, first, ask) if original is None else original_rows(side, original, first, ask)
        costs = {name: float(found.sum()) for name, found in rows.items() if name in weights}
    total = sum(costs.values())
    tensors = tuple(sorted((_tensor(weights[name], kl, total, rows.get(name)) for name, kl in costs.items()),
                           key=lambda t: -t.kl))
    whole = None if original is None else swap_kl(original, weights, truth, ask.cancelled)
    control = swap_kl(side if original is None else original, {}, truth or _walk(side, _one(first), ask), ask.cancelled)
    found = Damage(method, first.name, total, whole, control, tensors)
    return found if ask.budget is None else with_recipe(found, side, original, weights, held, ask)


def quantised_weights(side: Side) -> dict[str, Weight]:
    """The matrices of a file whose type rounds: what a bill is of."""
    return {name: w for name, w in side.model.file.weights.items()
            if len(w.shape) >= 2 and not (QUANTS[w.quant].is_plain and w.quant == "F32")}


def is_same(a: Weight, b: Weight) -> bool:
    """Whether both are stored alike, byte for byte: such a tensor costs nothing and is left out of a bill."""
    return a.quant == b.quant and (a.data is b.data or np.array_equal(a.data, b.data))


def refuse_other_shapes(side: Side, original: Side) -> None:
    """NotComparableError where the original lacks a tensor, or has it in another shape."""
    for name, weight in side.model.file.weights.items():
        other = original.model.file.weights.get(name)
        if other is None or other.shape != weight.shape:
            raise NotComparableError(
                f"{original.model.file.path.name} is not the original of {side.model.file.path.name}: "
                f"{name} is {'missing' if other is None else f'{other.shape}'} there, {weight.shape} here.")


def _tensor(weight: Weight, kl: float, total: float, rows: Floats | None) -> TensorDamage:
    layer = first_layer(weight.name, -1)
    return TensorDamage(weight.name, layer if layer >= 0 else None, weight.quant, len(weight.data), kl,
                        kl / total if total else 0.0, rows)


def _one(text: Corpus) -> Corpus:
    return Corpus(text.name, text.chunks[:1])


def _walk(side: Side, text: Corpus, ask: DamageOptions) -> list[Boundaries]:
    ask.emit(Phase(f"running {text.name} through {side.model.file.path.name}"))
    fits = text.n_token * side.model.arch.n_vocab <= KEPT_LOGITS
    return [boundaries(side, chunk, ask.cancelled, fits) for chunk in text.chunks]


def own_rows(side: Side, text: Corpus, ask: DamageOptions) -> dict[str, Floats]:
    """Nats a token of each row by a file's own gradients and steps, less what its own damage adds to them.

    A damaged model's gradients are steeper than its original's, and those are what a bill needs. Noise of the same size
    once more makes them steeper again, by a factor s that is about one for all tensors: F_i(o) s^k is F_i(q) for k = 1,
    F_i(q + noise) for k = 2. s is the median of their ratios, and F_i(o) the least-squares fit to both in logarithms.
    Source: simulation-extrapolation (Cook and Stefanski, 1994).
    """
    square = own_steps()
    bare = Bill(square, ask.cancelled, DRAWS)
    noisy = [Bill(square, ask.cancelled, noise=i) for i in range(len(text.chunks))]  # other noise for each chunk
    for i, bill in enumerate(noisy):
        _charge(side, bare, text, i, ask)
        _charge(side, bill, text, i, ask)
    steeper = {name: sum(bill.of(name) for bill in noisy) / bare.of(name) for name in bare.tensors if bare.of(name)}
    s = float(np.median([*steeper.values()])) if steeper else 1.0
    return {name: rows / text.n_token * (steeper[name] ** 0.5 / s**1.5 if name in steeper and s else 1.0)
            for name, rows in bare.tensors.items()}


def original_rows(side: Side, original: Side, text: Corpus, ask: DamageOptions) -> dict[str, Floats]:
    """Nats a token of each row by the original's gradients and the file's true errors."""
    bill = Bill(squared_difference(side), ask.cancelled, DRAWS)
    for i in range(len(text.chunks)):
        _charge(original, bill, text, i, ask)
    return {name: rows / text.n_token for name, rows in bill.tensors.items()}


def _charge(side: Side, bill: Bill, text: Corpus, index: int, ask: DamageOptions) -> None:
    """Charge a chunk by the side's gradients, over draws that are the chunk's own."""
    what, n = "gradients" if bill.noise is None else "gradients under noise", len(text.chunks)
    ask.emit(Phase(f"{what} of chunk {index + 1} of {n}", index + 1, n))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(side.threads or threads)
        add_to_bill(side.model, text.chunks[index], bill, torch.Generator().manual_seed(SEED + index))
    finally:
        torch.set_num_threads(threads)


def own_steps() -> ErrorSquare:
    """rounding_variance that is worked out once for each row."""
    known: dict[tuple[str, int, int], Tensor] = {}

    def square(weight: Weight, start: int, stop: int) -> Tensor:
        key = (weight.name, start, stop)
        if key not in known:
            known[key] = rounding_variance(weight, start, stop)
        return known[key]

    return square


def squared_difference(other_side: Side) -> ErrorSquare:
    """The square of each weight's distance from another side's."""
    def square(weight: Weight, start: int, stop: int) -> Tensor:
        name, _, expert = weight.name.partition("[")
        other = other_side.model.file.weight(name)
        other = expert_weight(other, int(expert[:-1])) if expert else other
        return (decode_rows(weight, start, stop) - decode_rows(other, start, stop)).square()

    return square


def with_recipe(
    found: Damage, side: Side, original: Side | None, weights: Mapping[str, Weight], held: Corpus, ask: DamageOptions
) -> Damage:
    """Add the recipe, re-measured on the held-out text where there is an original; refused where it does not help."""
    lines = recipe(found.tensors, weights, ask.budget or 0)
    if original is None or not lines:
        return replace(found, recipe=lines, refusal=None if lines else "no raise fits the budget")
    ask.emit(Phase(f"measuring the recipe on {held.name}"))
    truth = _walk(original, held, ask)
    better = {line.name: raised(line, original.model.file.weight(line.name)) for line in lines}
    before, after = (swap_kl(original, w, truth, ask.cancelled) for w in (weights, {**weights, **better}))
    measured = Measured(before, after, held.name)
    if after >= before:
        return replace(found, measured=measured,
                       refusal=f"the recipe does not help on {held.name}: KL {before:.4g} before, {after:.4g} after")
    return replace(found, recipe=lines, measured=measured)

