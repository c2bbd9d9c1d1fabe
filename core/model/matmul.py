"""Multiply by a stored weight at the declared compute, on the fused path or by decode-then-multiply.

Fused (float32 values on the CPU): the compiled kernels of kernels/. Else: decode a few rows at a time, then multiply.
Not here: the decoders (quant/dequantize.py), how activations are rounded (quant/activations.py), the forward that
asks (forward.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.cpu.bindings import is_fused, multiply_experts_fused, multiply_fused, multiply_joined_fused
from core.kernels.cpu.build import Absent, Library, library
from core.kernels.cpu.decoding import decode_rows
from core.kernels.gpu.planes import LAYOUTS
from core.model.gpu_weights import Resident, why_no_kernels
from core.quant import dequantize
from core.quant.activations import COMPUTES, Compute, q8_kind, round_activations
from core.quant.types import QUANTS, UNFUSED, row_bytes
from core.quant.weight import Weight

CHUNK_WEIGHTS = 1 << 20  # decoded at a time on the CPU: 4 MiB of float32, so that they are multiplied from the cache
DECODED, PLAIN, RESIDENT = "decoded", "plain", "resident"  # paths of products beside the kinds of the compiled kernels
ROUNDED_INSIDE = ("q8_k", "q8_0", "bf16")  # kinds of fused products that round the activations themselves


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run wants multiplied by a weight: x [T, cols] at a compute; plain: without kernels, whatever there are.

    experts: which of the experts of a weight [E, rows, cols] each row of x meets.
    """

    x: Tensor
    compute: str
    plain: bool = False
    experts: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Product:
    """What serves an ask: its path, and x as that path takes it; dtype: of the product."""

    path: str  # DECODED, PLAIN, RESIDENT, or one of the compiled kernels' kinds
    x: Tensor
    dtype: torch.dtype
    compute: Compute


def kernel_path(compute: str, device: torch.device) -> str:
    """Name the kernel path and say why it was chosen; the first call compiles the kernels where they are not yet."""
    missing = why_no_kernels(device)
    if missing is None:
        how = "one token: 24-bit whole numbers by groups of 256, exact sums; more: three bfloat16 parts, float32 sums"
        from core.kernels.gpu.products import VERSION

        return (f"Triton {VERSION} {compute}, no TF32, weights quantised on the device ({how}) for "
                f"{' '.join(LAYOUTS)}; other types decode-then-multiply")
    if device.type == "cuda":
        return f"decode-then-multiply {compute}, whole tensors ({missing})"
    steps = f"decode-then-multiply {compute}, {CHUNK_WEIGHTS} weights at a time"
    if COMPUTES[compute].kept is not None:
        return f"{steps} (no kernel keeps its products in {compute})"
    kernels = library()
    if isinstance(kernels, Absent):
        return f"{steps} ({kernels.reason})"
    level = kernels.level
    description = {"f32": level.description, "q8": level.description_q8, "bf16": level.description_bf16}[compute]
    return f"fused {level.name} ({description}; {kernels.reason}); {' '.join(UNFUSED)}: {steps}"


def multiply(
    weight: Weight, asks: Sequence[Ask], cancelled: Callable[[], None], resident: Resident | None = None
) -> list[Tensor]:
    """Return x W^T [T, rows] for each ask; every row of W is decoded once for all asks of a path.

    cancelled: called between chunks; it raises to end the run.
    resident: the weights on their GPU, where each ask has a launch of its own, so that its bits are its own.
    """
    if len(weight.shape) == 3:
        return _multiply_experts(weight, asks, cancelled, resident)
    products = [_product(weight, ask, resident) for ask in asks]
    paths = dict.fromkeys(product.path for product in products)
    if len(paths) == 1:
        return _multiply_alike(weight, products, cancelled, resident)
    made: dict[int, Tensor] = {}
    for path in paths:
        same = {i: product for i, product in enumerate(products) if product.path == path}
        made |= zip(same, _multiply_alike(weight, list(same.values()), cancelled, resident), strict=True)
    return [made[i] for i in range(len(asks))]


def multiply_joined(
    weights: Sequence[Weight], asks: Sequence[Ask], cancelled: Callable[[], None], resident: Resident | None = None
) -> list[Tensor]:
    """Return the products by several matrices side by side [T, all rows], to the bits that each has alone."""
    paths = {_path(weight, ask, resident) for weight in weights for ask in asks}
    takes_x = set(ROUNDED_INSIDE) if any(ask.compute != "f32" for ask in asks) else {"f32", *ROUNDED_INSIDE}
    kernels = library() if len(paths) == 1 and paths <= takes_x else None
    if not isinstance(kernels, Library):
        each = [multiply(weight, asks, cancelled, resident) for weight in weights]
        return [torch.cat(parts, -1) for parts in zip(*each, strict=True)]
    y = multiply_joined_fused(kernels, weights, _joined([ask.x for ask in asks]), cancelled, paths.pop())
    return [y] if len(asks) == 1 else list(torch.split(y, [len(ask.x) for ask in asks]))


def expert_weight(weight: Weight, expert: int) -> Weight:
    """One expert's matrix of a weight [E, rows, cols]: a view of the same packed bytes."""
    _, rows, cols = weight.shape
    size = rows * row_bytes(QUANTS[weight.quant], cols)
    data = weight.data[expert * size:(expert + 1) * size]
    return Weight(f"{weight.name}[{expert}]", weight.quant, (rows, cols), data)


def _multiply_experts(
    weight: Weight, asks: Sequence[Ask], cancelled: Callable[[], None], resident: Resident | None
) -> list[Tensor]:
    """Multiply the rows of each ask by their experts, those of a path together; an expert nobody chose is not read."""
    paths = [_path(weight, ask, resident) for ask in asks]
    made: dict[int, Tensor] = {}
    for path in dict.fromkeys(paths):
        same = {i: ask for i, ask in enumerate(asks) if paths[i] == path}
        multiply_all = _experts_one_by_one if path in (DECODED, PLAIN, RESIDENT) else _experts_at_once
        made |= zip(same, multiply_all(weight, list(same.values()), cancelled, resident), strict=True)
    return [made[i] for i in range(len(asks))]


def _experts_at_once(
    weight: Weight, asks: Sequence[Ask], cancelled: Callable[[], None], resident: Resident | None
) -> list[Tensor]:
    """Multiply in one call of the compiled kernels, as many experts as there are."""
    kernels, products = library(), [_product(weight, ask, resident) for ask in asks]
    assert isinstance(kernels, Library), weight.name
    x, experts = _joined([p.x for p in products]), _joined([_chosen(weight, ask) for ask in asks])
    y = multiply_experts_fused(kernels, weight, x, experts, cancelled, products[0].path)
    return list(torch.split(y, [len(ask.x) for ask in asks]))


def _experts_one_by_one(
    weight: Weight, asks: Sequence[Ask], cancelled: Callable[[], None], resident: Resident | None
) -> list[Tensor]:
    outs = [ask.x.new_empty(len(ask.x), weight.shape[1]) for ask in asks]
    ids = [_chosen(weight, ask) for ask in asks]
    for expert in sorted({each for id_N in ids for each in id_N.tolist()}):
        at_N = [(id_N == expert).nonzero()[:, 0] for id_N in ids]
        rows = [(i, at) for i, at in enumerate(at_N) if len(at)]
        parts = [Ask(asks[i].x[at], asks[i].compute, asks[i].plain) for i, at in rows]
        for (i, at), y in zip(rows, multiply(expert_weight(weight, expert), parts, cancelled, resident), strict=True):
            outs[i][at] = y.to(outs[i].dtype)
    return outs


def _chosen(weight: Weight, ask: Ask) -> Tensor:
    assert ask.experts is not None, weight.name
    return ask.experts


def _multiply_alike(
    weight: Weight, products: Sequence[_Product], cancelled: Callable[[], None], resident: Resident | None
) -> list[Tensor]:
    """Multiply by the path that they share."""
    path = products[0].path
    if resident is not None and path == RESIDENT:
        return [resident.multiply(weight, product.x) for product in products]
    if path in (DECODED, PLAIN):
        return _decode_multiply(weight, products, path, cancelled)
    kernels = library()
    assert isinstance(kernels, Library), path
    return _multiply_together(kernels, weight, [product.x for product in products], path, cancelled)


def _product(weight: Weight, ask: Ask, resident: Resident | None) -> _Product:
    compute = COMPUTES[ask.compute]
    path = _path(weight, ask, resident)
    x = ask.x if path in ROUNDED_INSIDE else round_activations(ask.x, ask.compute, weight.quant)
    return _Product(path, x, ask.x.dtype, compute)


def _path(weight: Weight, ask: Ask, resident: Resident | None) -> str:
    if ask.plain or COMPUTES[ask.compute].kept is not None:
        return PLAIN if ask.plain else DECODED
    if resident is not None:
        return RESIDENT if resident.serves(weight, ask.x) else DECODED
    if not is_fused(weight, ask.x) or not isinstance(library(), Library):
        return DECODED
    if ask.compute == "q8":
        return q8_kind(QUANTS[weight.quant], weight.shape[-1]) or "f32"
    return "bf16" if ask.compute == "bf16" else "f32"  # f32 takes values that have been rounded before


def _multiply_together(
    kernels: Library, weight: Weight, inputs: list[Tensor], kind: str, cancelled: Callable[[], None]
) -> list[Tensor]:
    """Multiply all rows of the inputs in one call of the compiled kernels."""
    products = multiply_fused(kernels, weight, _joined(inputs), cancelled, kind)
    return [products] if len(inputs) == 1 else list(torch.split(products, [len(x) for x in inputs]))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode_multiply(
    weight: Weight, products: Sequence[_Product], path: str, cancelled: Callable[[], None]
) -> list[Tensor]:
    rows, cols = weight.shape
    decode = dequantize.decode_rows if path == PLAIN else decode_rows
    device = products[0].x.device
    step = max(1, CHUNK_WEIGHTS // cols) if device.type == "cpu" else rows
    outs = [product.x.new_empty(len(product.x), rows, dtype=product.dtype) for product in products]
    scratch = torch.empty((min(step, rows), cols), device=device)
    for start in range(0, rows, step):
        cancelled()
        stop = min(start + step, rows)
        w = decode(weight, start, stop, device, out=scratch[: stop - start])
        for out, product in zip(outs, products, strict=True):
            keep = product.compute.keep
            out[:, start:stop] = keep(product.x @ keep(w.to(product.x.dtype)).T)
    return outs
