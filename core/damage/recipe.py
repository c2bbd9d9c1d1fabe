"""What to raise for a budget: the most nats saved a byte, by what each type's rounding costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from core.damage.result import Raise, TensorDamage
from core.quant.dequantize import decode_weight
from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight
from core.system.safe_text import join_words

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32")  # that a tensor is raised to: gguf-py writes them


def recipe(tensors: Sequence[TensorDamage], weights: Mapping[str, Weight], budget: int) -> tuple[Raise, ...]:
    """Raise tensors step after step, the most KL saved a byte first, until the budget of bytes is spent."""
    now = {t.name: (t.type, t.bytes, t.kl) for t in tensors}
    steps = sorted((step for t in tensors for step in _steps(t, weights[t.name])), key=lambda s: -s[0])
    left = budget
    chosen: dict[str, tuple[str, int, float]] = {}
    for _, name, to, size, kl in steps:
        spent = chosen.get(name, now[name])[1]
        if size - spent <= left and size > spent:
            left -= size - spent
            chosen[name] = (to, size, kl)
    return tuple(Raise(name, now[name][0], to, size - now[name][1], now[name][2] - kl)
                 for name, (to, size, kl) in sorted(chosen.items(), key=lambda item: item[1][2] - now[item[0]][2]))


def _steps(tensor: TensorDamage, weight: Weight) -> list[tuple[float, str, str, int, float]]:
    """The worthwhile raises of a tensor: nats a byte of the step, name, type, its bytes, what it costs there.

    Only those on the lower hull: a step that a longer one beats is left out.
    """
    error = QUANTS[tensor.type].error
    if not error or tensor.kl <= 0:
        return []
    points = [(tensor.bytes, tensor.kl, tensor.type)]
    for name in TYPES:
        kind = QUANTS[name]
        size = tensor_bytes(kind, weight.shape)
        if size > tensor.bytes and weight.shape[-1] % kind.block == 0 and (kind.error or 0.0) < error:
            points.append((size, tensor.kl * ((kind.error or 0.0) / error) ** 2, name))
    hull: list[tuple[int, float, str]] = []
    for point in sorted(points):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), tensor.name, b[2], b[0], b[1]) for a, b in pairwise(hull)]


def _slope(a: tuple[int, float, str], b: tuple[int, float, str]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])


def raised(line: Raise, original: Weight) -> Weight:
    """The original's tensor as the recipe's type stores it; gguf-py rounds it."""
    import gguf

    shape = original.shape
    values = decode_weight(original).numpy().astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[line.to_type])
    return Weight(original.name, line.to_type, shape, np.ascontiguousarray(data).view(np.uint8).reshape(-1))


def quantize_lines(lines: Sequence[Raise]) -> list[str]:
    """The options of llama-quantize that make it, as a shell reads them."""
    return [join_words(["--tensor-type", f"{line.name.removesuffix('.weight')}={line.to_type.lower()}"])
            for line in lines]
