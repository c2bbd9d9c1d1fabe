"""Measure a training step beside the device's own matmul rate: python -m tests.bench.train --out DIR [--config NAME].

Writes DIR/bench.json and DIR/report.md, with run.json, train.jsonl, gates.json and nvidia-smi.csv of the run itself;
checkpoints are left out. On a GPU the config is 370m at 8 x 1024 tokens, compiled; on a CPU it is tiny.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.jsontext import to_json
from core.train_config import PRESETS, TrainOptions, n_parameters
from core.train_gates import TIMED
from core.train_log import GATES, GPU, GRADS, RUN, TRAIN, VAL
from core.train_records import Step, TrainEvent
from core.train_run import open_run, train

DATASHEET_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "4090": 165.0}  # dense bf16
SIZES = {"cuda": 8192, "cpu": 1024}  # of the square product that the device's rate is read from
TABLE_LIMIT = 0.03     # gradient tables may cost this part of a step, spread over grads_every steps


def matmul_tflops(device: str) -> float:
    """Rate of one square product on random data: bf16 on a GPU, float32 on a CPU; the median of ten after three."""
    import torch

    kind = torch.bfloat16 if device.startswith("cuda") else torch.float32
    n = SIZES[device.split(":")[0]]
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(13):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[3:]) / 1e12


def step_flops(plan: dict[str, Any]) -> float:
    """6 x parameters x tokens, and causal attention: 6 x layers x heads' width x sequence x tokens."""
    arch, tokens = plan["arch"], plan["batch"] * plan["seq"]
    parameters = n_parameters(PRESETS[plan["config"]].arch())
    return tokens * (6.0 * parameters + 6.0 * arch["n_layer"] * arch["n_head"] * arch["head_dim"] * plan["seq"])


def measure(steps: tuple[Step, ...], run: dict[str, Any], rate: float) -> dict[str, Any]:
    """Sum up: time of steps 20..49, what part of the matmul rate that is, what the gradient tables cost."""
    every = run["plan"]["grads_every"]
    timed = [s for s in steps if s.step in TIMED]
    plain = statistics.median(s.wall_ms for s in timed if s.step % every)
    # a table's copies fall partly into the step after it, so both count
    tabled = [s.wall_ms + after.wall_ms - 2 * plain for s, after in pairwise(timed) if s.step % every == 0]
    cost = statistics.median(tabled) / every / plain if tabled else None
    flops = step_flops(run["plan"])
    wall = sorted(s.wall_ms for s in timed)
    name = next((name for name in DATASHEET_TFLOPS if name in run["device_name"]), None)
    return {
        "device": run["device_name"], "config": run["plan"]["config"],
        "step_tokens": run["plan"]["batch"] * run["plan"]["seq"],
        "wall_ms": {"min": wall[0], "median": statistics.median(wall), "max": wall[-1]}, "step_0_ms": steps[0].wall_ms,
        "tokens_per_sec": statistics.median(s.tokens_per_sec for s in timed), "step_tflop": flops / 1e12,
        "matmul_tflops": rate, "share_of_matmul_rate": flops / 1e9 / plain / rate,
        "datasheet_tflops": DATASHEET_TFLOPS.get(name or ""),
        "mfu_of_datasheet": flops / 1e9 / plain / DATASHEET_TFLOPS[name] if name else None,
        "gradient_tables_share": cost, "gradient_tables_limit": TABLE_LIMIT, "grads_every": every,
        "compile": run["compile"],
    }


def report(found: dict[str, Any], command: str) -> str:
    """The same as Markdown."""
    wall = found["wall_ms"]
    lines = [
        f"# Training step of {found['config']} on {found['device']}", "", f"    {command}", "",
        f"- wall_ms of steps {TIMED.start}..{TIMED.stop - 1}: min {wall['min']:.2f}, median {wall['median']:.2f}, max "
        f"{wall['max']:.2f}; step 0 took {found['step_0_ms']:.0f}",
        f"- {found['tokens_per_sec']:.0f} tokens a second, {found['step_tokens']} a step; compiled: {found['compile']}",
        f"- {found['step_tflop']:.3g} TFLOP a step is {found['share_of_matmul_rate']:.1%} of the matmul rate measured "
        f"in this run, {found['matmul_tflops']:.3g} TFLOP/s",
    ]
    if found["mfu_of_datasheet"] is not None:
        lines.append(f"- MFU {found['mfu_of_datasheet']:.1%} of the datasheet's {found['datasheet_tflops']:g} TFLOP/s "
                     "in dense bf16")
    if found["gradient_tables_share"] is not None:
        lines.append(f"- gradient tables, one every {found['grads_every']} steps, cost "
                     f"{found['gradient_tables_share']:.2%} of the time (limit {TABLE_LIMIT:.0%})")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    from core.telemetry import choose_device

    device, _ = choose_device(asked.device)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: read when torch is first imported
    on_gpu = device.startswith("cuda")
    config = asked.config or ("370m" if on_gpu else "tiny")
    rate = matmul_tflops(device)
    command = f"python -m tests.bench.train {' '.join(sys.argv[1:])}"
    with tempfile.TemporaryDirectory() as work:
        result = train(TrainOptions(
            Path(work) / "run", config=config, corpus=asked.corpus, steps=asked.steps, steps_per_epoch=asked.steps,
            grads_every=20, device=device, command=command,
            compile="on" if on_gpu and asked.compile == "auto" else asked.compile), _tell)
        view = open_run(result.out)
        asked.out.mkdir(parents=True, exist_ok=True)
        for name in (RUN, TRAIN, VAL, GRADS, GPU, GATES, "nvidia-smi.csv"):
            if (result.out / name).is_file():
                shutil.copy(result.out / name, asked.out / name)
    found = measure(view.steps, dict(view.run), rate)
    (asked.out / "bench.json").write_text(to_json(found, indent=1) + "\n")
    (asked.out / "report.md").write_text(report(found, command))
    print(report(found, command))


def _tell(event: TrainEvent) -> None:
    if event.kind in ("phase", "note", "status", "checkpoint"):
        print(event.text, file=sys.stderr, flush=True)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
