"""Hold the bill of a quantised file to exact swaps: python -m tests.bench.damage ORIGINAL.gguf [Q4_0 ...] [--tokens N].

llama.cpp rounds ORIGINAL to each type. Prints for each bill: its rank correlation with exact swaps of one tensor at a
time on the same text, its total by the whole file's KL, and the KL on held-out text with its recipe for BYTES.
Tensors are the layers' own; the embedding and the head are in the totals and the recipes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from core.damage.bill import DamageOptions, damage, quantised_weights, with_recipe
from core.damage.corpus import Corpus, read_corpus
from core.damage.exact import BLOCK
from core.damage.result import Damage
from core.formats.open_model import open_model
from core.quant.dequantize import decode_weight
from core.trace.run import Side, open_side

FTYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q3_K_M": 12, "Q4_K_M": 15}  # llama.cpp's llama_ftype
BUDGET = 0.05  # of the file's bytes


def main() -> None:
    """Print a table a type."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ORIGINAL", type=Path)
    parser.add_argument("types", nargs="*", default=["Q4_0"], choices=FTYPES, metavar="TYPE")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    original = open_side(open_model(asked.ORIGINAL), "cpu", threads=asked.threads)
    text = read_corpus(None, original.tokenizer, 128, 2 * asked.tokens)
    for name in asked.types:
        with tempfile.TemporaryDirectory() as folder:
            path = quantise(asked.ORIGINAL, Path(folder) / f"{name}.gguf", name)
            side = open_side(open_model(path), "cpu", threads=asked.threads)
            measure(name, side, original, text, int(path.stat().st_size * BUDGET))


def quantise(original: Path, path: Path, name: str) -> Path:
    """Write the original as llama.cpp rounds it."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FTYPES[name], True, 1
    if llama_cpp.llama_model_quantize(str(original).encode(), str(path).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not write {name}")
    return path


def measure(name: str, side: Side, original: Side, text: Corpus, budget: int) -> None:
    """Print the table of one type."""
    bills: dict[str, Damage] = {}
    seconds: dict[str, float] = {}
    asks = {"own block steps": (None, False), "original": (original, False), "exact swaps": (original, True)}
    for bill, (other, exact) in asks.items():
        start = time.perf_counter()
        bills[bill] = damage(side, other, text, DamageOptions(exact))
        seconds[bill] = time.perf_counter() - start
        print(f"{name} {bill}: {seconds[bill]:.0f} s", file=sys.stderr, flush=True)
    truth = of_layers(bills["exact swaps"])
    whole, weights = bills["original"].whole or 0.0, quantised_weights(side)
    print(f"\n{original.model.file.path.name} as {name}: KL {whole:.4g} nats a token on {text.halves(512)[0].n_token} "
          f"tokens, {len(truth)} tensors; recipe for {budget} bytes")
    print(f"{'bill':<24}{'rank':>7}{'total/whole':>13}{'held-out KL before':>20}{'after':>11}{'seconds':>9}")
    for bill, found in bills.items():
        told = with_recipe(found, side, original, weights, text.halves(512)[1], DamageOptions(budget=budget))
        after = f"{told.measured.before:>20.4g}{told.measured.after:>11.4g}" if told.measured else f"{'-':>20}{'-':>11}"
        print(f"{bill:<24}{rank(of_layers(found), truth):>7.3f}{found.total / whole:>13.2f}{after}"
              f"{seconds[bill]:>9.0f}", flush=True)
    print(f"{'relative weight error':<24}{rank(weight_error(side, original, truth), truth):>7.3f}", flush=True)


def of_layers(found: Damage) -> dict[str, float]:
    """The bill of the layers' own tensors."""
    return {t.name: t.kl for t in found.tensors if BLOCK.match(t.name)}


def weight_error(side: Side, original: Side, names: Mapping[str, float]) -> dict[str, float]:
    """What other tools print: the relative error of each tensor."""
    found = {}
    for name in names:
        ours, theirs = (decode_weight(s.model.file.weight(name)) for s in (side, original))
        found[name] = float((ours - theirs).norm() / theirs.norm())
    return found


def rank(found: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Spearman's rank correlation over the truth's tensors."""
    ranks = [np.argsort(np.argsort([values.get(name, 0.0) for name in truth])) for values in (found, truth)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
