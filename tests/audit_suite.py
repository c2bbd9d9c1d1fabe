"""Plant faults in a trained file, one at a time, and count which the audit names; and its alarms on sound files.

usage: python -m tests.audit_suite FILE [--sound FILE_OR_FOLDER ...] [--each N] [--seed S] [--out TABLE]

A plant is named where a finding of one of its kinds carries the tensor (or the layer) that was changed. Only what a
plant changes is read again, so that hundreds take minutes. FILE: a llama of 8 layers or more, such as SmolLM2 135M.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.audit.audit_file import audit_file, judge
from core.audit.blocks import scan_blocks, scan_tensor
from core.audit.finding import Finding
from core.audit.profiles import profile, profile_file
from core.audit.rule import Seen, layer_of, role_of
from core.formats.architectures import rope_row_order
from core.formats.open_model import open_model
from core.model.arch import head_width, read_arch
from core.quant.dequantize import decode_weight
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import never

Random = np.random.Generator
Changed = dict[str, Weight]
PLACES = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight",
          "ffn_down.weight")

NORMS = ("attn_norm.weight", "ffn_norm.weight")


@dataclass(frozen=True)
class Plant:
    """One kind of fault: make changes some tensors; kinds: findings that name it; least: part that must be named."""

    make: Callable[[Seen, Random], Changed]
    kinds: tuple[str, ...]
    least: float


def with_bytes(weight: Weight, data: np.ndarray) -> Weight:
    return replace(weight, data=np.ascontiguousarray(data).view(np.uint8).reshape(-1))


def some_matrix(seen: Seen, random: Random) -> Weight:
    names = [n for n, w in seen.file.weights.items() if len(w.shape) == 2 and QUANTS[w.quant].scales_at]
    return seen.file.weights[str(random.choice(names))]


def some_layer(seen: Seen, random: Random) -> int:
    return int(random.integers(0, n_layer(seen)))


def n_layer(seen: Seen) -> int:
    return 1 + max(layer_of(n) or 0 for n in seen.file.weights)


def scale(seen: Seen, random: Random, change: Callable[[int], int]) -> Changed:
    """Change the bits of the scale of one block of a matrix, any of them."""
    weight = some_matrix(seen, random)
    data = np.array(weight.data)
    blocks = data.reshape(-1, QUANTS[weight.quant].block_bytes)
    at, block = QUANTS[weight.quant].scales_at[0], int(random.integers(0, len(blocks)))
    half = blocks[block, at:at + 2].view("<u2")
    half[0] = change(int(half[0]))
    return {weight.name: with_bytes(weight, data)}


def times_64(bits: int) -> int:
    value = np.array([bits], "<u2").view("<f2") * np.float16(64)
    return int(value.astype("<f2").view("<u2")[0])


def zero_rows(seen: Seen, random: Random) -> Changed:
    weight = seen.file.weights[f"blk.{some_layer(seen, random)}.{random.choice(PLACES)}"]
    data, n = np.array(weight.data), int(random.integers(1, 9))
    rows = data.reshape(weight.shape[0], -1)
    start = int(random.integers(0, len(rows) - n))
    rows[start:start + n] = 0
    return {weight.name: with_bytes(weight, data)}


def two_layers(seen: Seen, random: Random) -> tuple[int, int]:
    first, second = random.choice(n_layer(seen), 2, replace=False)
    return int(first), int(second)


def copied(seen: Seen, random: Random, places: tuple[str, ...] = PLACES) -> Changed:
    """A tensor of one layer in another's place, too."""
    (first, second), place = two_layers(seen, random), random.choice(places)
    here = seen.file.weights[f"blk.{first}.{place}"]
    return {here.name: replace(here, quant=(of := seen.file.weights[f"blk.{second}.{place}"]).quant, data=of.data)}


def exchanged(seen: Seen, first: str, second: str) -> Changed:
    a, b = (seen.file.weights[name] for name in (first, second))
    return {first: replace(a, quant=b.quant, data=b.data), second: replace(b, quant=a.quant, data=a.data)}


def tensor_exchange(seen: Seen, random: Random) -> Changed:
    (first, second), place = two_layers(seen, random), random.choice(PLACES)
    return exchanged(seen, f"blk.{first}.{place}", f"blk.{second}.{place}")


def gate_up(seen: Seen, random: Random) -> Changed:
    layer = some_layer(seen, random)
    return exchanged(seen, f"blk.{layer}.ffn_gate.weight", f"blk.{layer}.ffn_up.weight")


def layer_exchange(seen: Seen, random: Random) -> Changed:
    first, second = two_layers(seen, random)
    names = [n for n in seen.file.weights if layer_of(n) == first]
    return {k: v for n in names for k, v in exchanged(seen, n, f"blk.{second}.{role_of(n)}").items()}


def row_order(seen: Seen, random: Random, places: tuple[str, ...]) -> Changed:
    """The rows of q or k as they were before the converter sorted them."""
    weight = seen.file.weights[f"blk.{some_layer(seen, random)}.{random.choice(places)}"]
    rows = weight.data.reshape(weight.shape[0], -1)
    return {weight.name: with_bytes(weight, rows[rope_row_order(len(rows), head_width(seen.file), "adjacent")])}


def both_orders(seen: Seen, random: Random) -> Changed:
    layer = some_layer(seen, random)
    return {k: v for place in ("attn_q.weight", "attn_k.weight")
            for k, v in row_order_of(seen, f"blk.{layer}.{place}").items()}


def row_order_of(seen: Seen, name: str) -> Changed:
    weight = seen.file.weights[name]
    rows = weight.data.reshape(weight.shape[0], -1)
    return {name: with_bytes(weight, rows[rope_row_order(len(rows), head_width(seen.file), "adjacent")])}


def every_order(seen: Seen, random: Random) -> Changed:
    names = [n for n in seen.file.weights if role_of(n) in ("attn_q.weight", "attn_k.weight")]
    return {k: v for n in names for k, v in row_order_of(seen, n).items()}


def transposed(seen: Seen, random: Random) -> Changed:
    from tests.support.small_models import quantised

    names = [n for n, w in seen.file.weights.items() if layer_of(n) is not None and len(w.shape) == 2
             and w.shape[0] == w.shape[1]]
    weight = seen.file.weights[str(random.choice(names))]
    values = decode_weight(weight).numpy().T
    return {weight.name: with_bytes(weight, quantised(np.ascontiguousarray(values), weight.quant))}


def norm_plus_one(seen: Seen, random: Random) -> Changed:
    names = [n for n in seen.file.weights if n.endswith("norm.weight")]
    weight = seen.file.weights[str(random.choice(names))]
    return {weight.name: with_bytes(weight, weight.data.view("<f4") + np.float32(1))}


def every_norm_plus_one(seen: Seen, random: Random) -> Changed:
    return {n: with_bytes(w, w.data.view("<f4") + np.float32(1))
            for n, w in seen.file.weights.items() if n.endswith("norm.weight")}


def level_8(seen: Seen, random: Random) -> Changed:
    weight = seen.file.weights[f"blk.{some_layer(seen, random)}.{random.choice(PLACES)}"]
    data = np.array(weight.data)
    blocks = data.reshape(-1, QUANTS[weight.quant].block_bytes)
    for at in QUANTS[weight.quant].scales_at:
        half = np.ascontiguousarray(blocks[:, at:at + 2]).view("<f2") * np.float16(8)
        blocks[:, at:at + 2] = half.astype("<f2").view(np.uint8).reshape(-1, 2)
    return {weight.name: with_bytes(weight, data)}


PLANTS: Mapping[str, Plant] = {
    "NaN scale": Plant(lambda s, r: scale(s, r, lambda bits: 0x7E00), ("not_finite",), 0.95),
    "Inf scale": Plant(lambda s, r: scale(s, r, lambda bits: 0x7C00), ("not_finite",), 0.95),
    "sign of a scale": Plant(lambda s, r: scale(s, r, lambda bits: bits ^ 0x8000), ("negative_scale",), 0.95),
    "rows of zeros": Plant(zero_rows, ("zero_rows", "zero_row"), 0.95),
    "block x 64": Plant(lambda s, r: scale(s, r, times_64), ("block",), 0.95),
    "tensor of another layer": Plant(copied, ("twins",), 0.95),
    "norm of another layer": Plant(lambda s, r: copied(s, r, NORMS), ("twins",), 0.95),
    "q un-permuted": Plant(lambda s, r: row_order(s, r, ("attn_q.weight",)), ("row_order",), 0.95),
    "k un-permuted": Plant(lambda s, r: row_order(s, r, ("attn_k.weight",)), ("row_order",), 0.95),
    "q and k un-permuted": Plant(both_orders, ("row_order",), 0.95),
    "q and k of all layers": Plant(every_order, ("row_order",), 0.95),
    "gate and up exchanged": Plant(gate_up, ("gate_up",), 0.95),
    "norm + 1": Plant(norm_plus_one, ("norm", "norm_origin"), 0.95),
    "every norm + 1": Plant(every_norm_plus_one, ("norm", "norm_origin", "norms"), 0.95),
    "tensor x 8": Plant(level_8, ("level",), 0.8),
    "layers exchanged": Plant(layer_exchange, ("layer_order",), 0.8),
    "square transposed": Plant(transposed, ("transposed",), 0.6),
    "tensor exchanged (no bar)": Plant(tensor_exchange, ("exchanged",), 0.0),
}


def is_named(found: list[Finding], kinds: tuple[str, ...], changed: Changed) -> bool:
    layers = {layer_of(n) for n in changed}
    here = (f for f in found if f.kind in kinds)
    return any(f.tensor in changed if f.tensor is not None else f.layer is None or f.layer in layers for f in here)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("FILE", type=Path)
    parser.add_argument("--sound", type=Path, nargs="*", default=[])
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    file = open_model(arguments.FILE)
    sound = Seen(file, read_arch(file), scan_blocks(file, never), profile_file(file, never))
    lines = [f"{arguments.FILE.name}, seed {arguments.seed}, {arguments.each} of each kind",
             f"{'plant':<28}{'named':>10}{'asked':>8}{'others':>8}"]
    failed = False
    for name, plant in PLANTS.items():
        if arguments.only and arguments.only not in name:
            continue
        random, named, others, missed = np.random.default_rng(arguments.seed), 0, 0, []
        for _ in range(arguments.each):
            changed = plant.make(sound, random)
            weights = {**file.weights, **changed}
            seen = Seen(replace(file, weights=weights), sound.arch,
                        {**sound.blocks, **{n: scan_tensor(w, never) for n, w in changed.items()}},
                        {**sound.profiles, **{n: profile(w, never) for n, w in changed.items()}})
            found = judge(seen)
            hit = is_named(found, plant.kinds, changed)
            named += hit
            others += not hit and bool(found)
            if not hit:
                missed.append(f"    missed: {', '.join(list(changed)[:2])}: "
                              f"{'; '.join(f.sentence for f in found[:2]) or 'nothing found'}")
        failed |= named < plant.least * arguments.each
        lines.append(f"{name:<28}{named:>4} of {arguments.each:>3}{plant.least:>8.0%}{others:>8}")
        print("\n".join([lines[-1], *missed[:6]]), flush=True)
    lines += ["", "alarms on sound files: proofs, hints"]
    for path in [p for s in arguments.sound for p in (sorted(s.glob("*.gguf")) if s.is_dir() else [s])]:
        audit = audit_file(path)
        lines.append(f"{path.name:<28}{len(audit.proofs):>4}{len(audit.hints):>4}" + "".join(
            f"\n    {f.sentence}" for f in audit.findings))
        print(lines[-1])
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
