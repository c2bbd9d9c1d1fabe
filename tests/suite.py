"""The planted-fault suite: every bug at every place where it can stand, and clean pairs that must raise no bug.

usage: python -m tests.suite [--sample N]

Prints a table; exit 1 where a fault is not located or a clean pair is accused. Value faults go through `check` alone,
at compute f32; byte faults through `compare` with a clean partner, since a file is always right by its own weights.
A fault that changes nothing where it stands is expected as BELOW_FLOOR, and the suite measures that.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

from core import session
from core.faults.value_faults import VALUE_FAULTS
from core.model.lockstep import run_lockstep
from core.model.model import Tap
from core.model.stages import USUAL, Place, place_text
from core.proof.distance import nmse
from core.trace.measures import BAD_FACTOR
from core.trace.request import Prompt, Source
from core.trace.run import open_side
from core.trace.taps import chain, record_values
from tests.support.small_models import write_model

N_LAYER, LAYERS = 4, (0, 1, 3)
PROMPTS = ((3, 17, 5, 42, 42, 7, 99), (1, 2), (8, 8, 8, 90, 4, 4, 1, 60, 33, 12, 77), (5, 64, 101))
TOKEN_OF = {"nan": -1}                    # kinds that stand at one token (from the end) ..
CHANNEL_OF = {"nan": 0, "zero-channel": 0}  # .. or one channel


@dataclass(frozen=True, slots=True)
class Case:
    """One value fault on one model."""

    model: str
    kind: str
    place: Place

    @property
    def plant(self) -> str:
        return f"{self.kind}@{place_text(self.place)}"


def write_models(folder: Path) -> dict[str, Path]:
    """The models of the suite: three architectures, and the K-quants."""
    shape = {"n_layer": N_LAYER, "d_model": 64, "d_ff": 96}
    wide = {"n_layer": N_LAYER, "d_model": 256, "d_ff": 512}
    return {
        "qwen2": write_model(folder / "qwen2.gguf", "Q8_0", arch="qwen2", **shape),
        "llama": write_model(folder / "llama.gguf", "F16", arch="llama", tied=True, **shape),
        "qwen3": write_model(folder / "qwen3.gguf", "F32", arch="qwen3", head_dim=32, **shape),
        "qwen2-k": write_model(
            folder / "k.gguf", "Q4_K", arch="qwen2", quants={"blk.1.ffn_down.weight": "Q6_K"}, **wide),
    }


def value_cases(models: Sequence[str]) -> Iterator[Case]:
    """Every kind at three layers and every stage where it can stand; K-quant bugs on the K-quant model only."""
    for name, (kind, row) in itertools.product(models, VALUE_FAULTS.items()):
        others = ("silu", "no-window", "no-sinks")  # kinds that these models have no place for
        if row.choice or kind in others or (kind in ("nibbles", "scale-min")) != (name == "qwen2-k"):
            continue
        for stage in USUAL:
            if stage.name in row.stages:
                yield from (Case(name, kind, (layer, stage.name)) for layer in ((None,) if stage.whole else LAYERS))


def below_floor(path: Path, case: Case, ids: Sequence[int]) -> bool:
    """Measure whether the fault changes its value by less than a check can tell: in one run, before and after it."""
    side = open_side(session.open_model(path), "cpu", plant=case.plant)
    before: dict[Place, object] = {}
    after: dict[Place, object] = {}
    tap: Tap = chain(chain(record_values(before), side.bug()), record_values(after))
    run_lockstep([side.forward_run(ids, tap)])
    changed = nmse(before[case.place], after[case.place])
    return changed is not None and changed[0] <= BAD_FACTOR * 1e-13


def run_value_case(path: Path, case: Case, ids: Sequence[int]) -> str:
    """LOCATED, BELOW_FLOOR, or what went wrong."""
    check = session.check(Source(path, device="cpu", plant=case.plant), Prompt(tokens=tuple(ids)))
    if check.first is None:
        return "BELOW_FLOOR" if below_floor(path, case, ids) else "MISSED"
    if check.first != case.place:
        return f"WRONG PLACE {place_text(check.first)}"
    worst = check.worst
    if case.kind in TOKEN_OF and worst.token != len(ids) + TOKEN_OF[case.kind]:
        return f"WRONG TOKEN {worst.token}"
    if case.kind in CHANNEL_OF and worst.channel != CHANNEL_OF[case.kind]:
        return f"WRONG CHANNEL {worst.channel}"
    return "LOCATED"


def clean_pairs(models: dict[str, Path], folder: Path) -> Iterator[tuple[str, Source, Source, tuple[int, ...]]]:
    """Pairs without a bug: formats, thread counts, computes, prompts."""
    for name, path in models.items():
        session.convert(path, folder / f"{name}.apr", to="f32" if name == "qwen2" else None, force=True)
    apr = {name: folder / f"{name}.apr" for name in models}
    settings = [("f32", "f32"), ("f32", "q8"), ("f32", "bf16"), ("q8", "f32"), ("bf16", "f32"), ("q8", "q8"),
                ("bf16", "bf16")]
    for name, (a, b), ids in itertools.product(models, settings, PROMPTS):
        yield f"{name} {a} {b}", Source(models[name], compute=a), Source(models[name], compute=b, threads=1), ids
        yield f"{name} {a} apr {b}", Source(models[name], compute=a), Source(apr[name], compute=b), ids


def byte_cases() -> Iterator[tuple[str, Place]]:
    """Bugs in the bytes of a file: every fault of the demonstration, at three layers."""
    for layer in (0, 2, 20):
        yield f"no-bias@{layer}.qkv", (layer, "qkv")
        yield f"swap-heads@{layer}.qkv", (layer, "qkv")
        yield f"transpose@{layer}.attn_out", (layer, "attn_out")
        for stage in ("qkv", "attn_out", "ffn_gate", "ffn_up", "ffn_out"):
            yield f"scale64@{layer}.{stage}", (layer, stage)
            yield f"nan@{layer}.{stage}", (layer, stage)
    yield "rope-pairing", (0, "q_rope")


def run_byte_case(folder: Path, fault: str, place: Place) -> str:
    """LOCATED, or what went wrong."""
    gguf, apr = session.write_demo(folder, fault=fault, force=True)
    result = session.compare(Source(apr), Source(gguf), None)
    if result.verdict != "H2" or result.first != place:
        return f"{result.verdict} at {place_text(result.first) if result.first else None}"
    return "LOCATED" if result.side is None else f"ACCUSED {result.side}: both are right by their own weights"


def run_suite(sample: int | None, seed: int = 0) -> Counter[tuple[str, str]]:
    """Run all of it, or sample cases of each part, and count (part, outcome)."""
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_models(folder)

        def some(cases: Iterator) -> list:
            every = list(cases)
            return every if sample is None else random.Random(seed).sample(every, min(sample, len(every)))

        for case in some(value_cases(list(models))):
            outcome = run_value_case(models[case.model], case, PROMPTS[0])
            counts["value faults", outcome] += 1
            if outcome not in ("LOCATED", "BELOW_FLOOR"):
                print(f"  {case.model} {case.plant}: {outcome}", flush=True)
        for fault, place in some(byte_cases()):
            outcome = run_byte_case(folder / "demo", fault, place)
            counts["byte faults", outcome] += 1
            if outcome != "LOCATED":
                print(f"  {fault}: {outcome}", flush=True)
        for label, a, b, ids in some(clean_pairs(models, folder)):
            verdict = session.compare(a, b, Prompt(tokens=ids)).verdict
            counts["clean pairs", verdict] += 1
            if verdict == "H2":
                print(f"  {label} {ids}: H2", flush=True)
    return counts


GOOD = {("value faults", "LOCATED"), ("value faults", "BELOW_FLOOR"), ("byte faults", "LOCATED"), ("clean pairs", "H1"),
        ("clean pairs", "AGREE"), ("clean pairs", "H3"), ("clean pairs", "INCONCLUSIVE")}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int)
    started = time.monotonic()
    counts = run_suite(parser.parse_args().sample)
    for (part, outcome), n in sorted(counts.items()):
        print(f"{part:<14} {outcome:<40} {n:>5}")
    print(f"{sum(counts.values())} cases in {time.monotonic() - started:.0f} s")
    return 0 if set(counts) <= GOOD else 1


if __name__ == "__main__":
    sys.exit(main())
