"""Measure a training step beside the device's own matmul rate: python -m tests.bench.train --out DIR [--config NAME].

Writes DIR/bench.json and DIR/report.md, with run.json, train.jsonl, grads.jsonl, gates.json, gpu.jsonl and
gpu_residency.csv of the run itself; no checkpoint is written. On a GPU the config is 370m at 8 x 1024 tokens, first as
it is, then compiled; the compiled run is the one that is kept, unless it failed. On a CPU it is tiny.
It needs torch, numpy, tokenizers and safetensors; without nvidia-ml-py the GPU's figures are not measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.system.errors import AprError
from core.system.json_text import to_json
from core.system.outcome import PASS
from core.system.progress import Phase
from core.train.checks.gates import TIMED
from core.train.config import TrainOptions
from core.train.events import Note, RunEnded, TrainEvent
from core.train.log import GATES, GPU, GRADS, RESIDENCY, RUN, TRAIN
from core.train.reader import open_run
from core.train.records import RunView, Step
from core.train.run import train

DATASHEET_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "4090": 165.0}  # dense bf16
SIZES = {"cuda": 8192, "cpu": 1024}  # of the square product that the device's rate is read from
ROUNDS, PRODUCTS = 5, 5  # rounds of so many products between two synchronisations, after one to warm up
TABLE_LIMIT = 0.03       # gradient tables may cost this part of a step, spread over grads_every steps
KEPT = (RUN, TRAIN, GRADS, GPU, GATES, RESIDENCY)
EVERY = 20               # steps between gradient tables, as the config 370m has it


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asked for, settled for the device."""

    out: Path
    config: str
    corpus: Path | None
    steps: int
    device: str
    compiles: tuple[str, ...]
    command: str


def matmul_tflops(device: str) -> float:
    """Rate of a square product on random data: bf16 on a GPU, float32 on a CPU; the median of the rounds."""
    import torch

    kind = torch.bfloat16 if device.startswith("cuda") else torch.float32
    n = SIZES[device.split(":")[0]]
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(1 + ROUNDS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            a @ b
        _wait(device)
        seconds.append((time.perf_counter() - start) / PRODUCTS)
    return 2 * n**3 / statistics.median(seconds[1:]) / 1e12


def step_flops(run: dict[str, Any]) -> float:
    """6 x parameters x tokens, and causal attention: 6 x layers x heads' width x sequence x tokens."""
    plan, arch = run["plan"], run["plan"]["arch"]
    attention = 6.0 * arch["n_layer"] * arch["n_head"] * arch["head_dim"] * plan["seq"]
    return float(plan["batch"] * plan["seq"] * (6.0 * run["parameters"] + attention))


def table_cost(steps: Sequence[Step], every: int) -> float | None:
    """What gradient tables take, as a part of all steps' time: the median over the tables from step 20 on.

    A table's copies fall partly into the step after it, so both count, over two plain steps.
    """
    steps = [s for s in steps if s.step >= TIMED.start]
    plain = [s.wall_ms for s in steps if s.step % every > 1]
    extra = [s.wall_ms + after.wall_ms - 2 * statistics.median(plain)
             for s, after in pairwise(steps) if s.step % every == 0 and plain]
    return statistics.median(extra) / every / statistics.median(plain) if extra else None


def measure(view: RunView, rate: float) -> dict[str, Any]:
    """Sum up: time of steps 20..49, what part of the matmul rate that is, what the gradient tables cost."""
    run, timed = dict(view.run), [s for s in view.steps if s.step in TIMED]
    if not timed:
        return {"status": view.status, "sentence": view.sentence, "steps": len(view.steps)}
    flops, wall = step_flops(run), sorted(s.wall_ms for s in timed)
    median = statistics.median(wall)
    name = next((name for name in DATASHEET_TFLOPS if name in run["device_name"]), None)
    return {
        "status": view.status, "sentence": view.sentence, "device": run["device_name"], "versions": run["versions"],
        "config": run["plan"]["config"], "step_tokens": run["plan"]["batch"] * run["plan"]["seq"],
        "compile": run["compile"], "steps": len(view.steps), "step_0_ms": view.steps[0].wall_ms,
        "wall_ms": {"min": wall[0], "median": median, "max": wall[-1]},
        "tokens_per_sec": statistics.median(s.tokens_per_sec for s in timed), "step_tflop": flops / 1e12,
        "matmul_tflops": rate, "share_of_matmul_rate": flops / 1e9 / median / rate,
        "datasheet_tflops": DATASHEET_TFLOPS.get(name or ""),
        "mfu_of_datasheet": flops / 1e9 / median / DATASHEET_TFLOPS[name] if name else None,
        "gradient_tables_share": table_cost(view.steps, run["plan"]["grads_every"]),
        "gradient_tables_limit": TABLE_LIMIT, "grads_every": run["plan"]["grads_every"],
        "train_loss": {"first": view.steps[0].train_loss, "last": view.steps[-1].train_loss},
        "val_loss": view.validations[-1].val_loss if view.validations else None, "residency": run.get("residency"),
    }


def report(found: dict[str, Any], view: RunView | None, seconds: float, command: str) -> str:
    """The same as Markdown: each run, then the gates of the one that was kept."""
    on = f" on {view.run['device_name']}" if view is not None else ""
    lines = [f"# Training step{on}", "", f"    {command}", "", f"{seconds:.0f} s in all."]
    for name, row in found["runs"].items():
        lines += ["", f"## compile {name}", "", *_run_lines(row)]
    if view is not None:
        lines += ["", "## Gates", "", *(f"- {g.verdict} {g.id}: {g.measured}" for g in view.gates)]
    return "\n".join(lines) + "\n"


def _run_lines(row: dict[str, Any]) -> list[str]:
    if "wall_ms" not in row:
        return [f"- {row['status']}: {row['sentence']}"]
    wall, memory = row["wall_ms"], row["peak_memory_mib"]
    lines = [
        f"- {row['status']}: {row['sentence']}; {row['compile']}",
        f"- wall_ms of steps {TIMED.start}..{TIMED.stop - 1}: min {wall['min']:.2f}, median {wall['median']:.2f}, max "
        f"{wall['max']:.2f}; step 0 took {row['step_0_ms']:.0f}",
        f"- {row['tokens_per_sec']:.0f} tokens a second, {row['step_tokens']} a step; loss "
        f"{row['train_loss']['first']:.4f} to {row['train_loss']['last']:.4f}",
        f"- {row['step_tflop']:.3g} TFLOP a step is {row['share_of_matmul_rate']:.1%} of the matmul rate measured "
        f"in this run, {row['matmul_tflops']:.3g} TFLOP/s",
        "- peak memory " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in memory.items()),
    ]
    if row["mfu_of_datasheet"] is not None:
        lines.append(f"- MFU {row['mfu_of_datasheet']:.1%} of the datasheet's {row['datasheet_tflops']:g} TFLOP/s "
                     "in dense bf16")
    if row["gradient_tables_share"] is not None:
        lines.append(f"- gradient tables, one every {row['grads_every']} steps, cost "
                     f"{row['gradient_tables_share']:.2%} of the time (limit {TABLE_LIMIT:.0%})")
    return lines


def run_once(asked: Asked, compiles: str, work: Path) -> tuple[RunView | None, dict[str, Any]]:
    """Train once; what breaks it is written down, so that the other run still stands."""
    rate = matmul_tflops(asked.device)
    _forget_peaks(asked.device)
    options = TrainOptions(
        work / compiles, config=asked.config, corpus=asked.corpus, steps=asked.steps, steps_per_epoch=asked.steps,
        grads_every=EVERY, device=asked.device, command=asked.command, compile=compiles, checkpoints=False)
    try:
        view = open_run(train(options, _tell).out)
    except AprError as error:
        return None, {"status": "FAILED", "sentence": str(error)}
    except Exception as error:  # noqa: BLE001 (a compiler's error is a finding of this bench)
        traceback.print_exc()
        return None, {"status": "FAILED", "sentence": f"{type(error).__name__}: {str(error)[:2000]}"}
    return view, measure(view, rate) | {"peak_memory_mib": _peaks(asked.device)}


def main() -> int:
    """Run it; 1 where no run came to its end with its gates."""
    asked, began = _read_command_line(), time.perf_counter()
    found: dict[str, Any] = {"runs": {}}
    kept: RunView | None = None
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for compiles in asked.compiles:
            view, found["runs"][compiles] = run_once(asked, compiles, Path(work))
            kept = view or kept
            if view is not None:
                for name in KEPT:
                    (asked.out / name).unlink(missing_ok=True)
                    if (view.out / name).is_file():
                        shutil.copy(view.out / name, asked.out / name)
            text = report(found, kept, time.perf_counter() - began, asked.command)  # after each: a kill keeps the first
            (asked.out / "bench.json").write_text(to_json(found, indent=1) + "\n")
            (asked.out / "report.md").write_text(text)
    print(text)
    return int(kept is None or kept.status != "DONE" or not any(g.verdict == PASS for g in kept.gates))


def _read_command_line() -> Asked:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    from core.system.gpus import choose_device

    device, _ = choose_device(asked.device)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: read when torch is first imported
    on_gpu = device.startswith("cuda")
    compiles = (asked.compile,) if asked.compile != "auto" else ("off", "on") if on_gpu else ("off",)
    return Asked(asked.out, asked.config or ("370m" if on_gpu else "tiny"), asked.corpus, asked.steps, device, compiles,
                 f"python -m tests.bench.train {' '.join(sys.argv[1:])}")


def _forget_peaks(device: str) -> None:
    """Begin the count of memory anew, without what an earlier run left."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks(device: str) -> dict[str, float]:
    """Peak memory in MiB: of tensors and of the whole pool on a GPU, of the process on a CPU."""
    if not device.startswith("cuda"):
        return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    import torch

    return {"tensors": torch.cuda.max_memory_allocated() / 2**20, "pool": torch.cuda.max_memory_reserved() / 2**20}


def _tell(event: TrainEvent) -> None:
    match event:
        case Phase(text) | Note(text):
            print(text, file=sys.stderr, flush=True)
        case RunEnded(status, sentence):
            print(f"{status}: {sentence}", file=sys.stderr, flush=True)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
