"""Measure on one GPU what the kernels promise: python -m tests.bench.gpu --out DIR [--shape 7b] [--model FILE].

First the ceilings, copy bandwidth and a bfloat16 product; then products by shape and tiling, decoding, prompts traced
and untraced, each beside the bytes that it must move. Writes DIR/gpu.json (every sample) and DIR/gpu.md (the table).
It needs torch, triton, numpy and gguf, makes its own random 7B Q4_K_M file, and takes minutes. It judges nothing: the
targets are printed beside the figures. --dry-run: a tiny model on the CPU in Triton's interpreter, to test the script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

PROMPTS, N_DECODE, DECODE_PROMPT, RUNS = (7, 128, 512, 2048), 64, 16, 9
LONG_TOKENS, LONG_RUNS = 512, 3  # prompts from here on are run less often
PLANES, FRESH = 20, 3  # layers that take turns; they are read from memory where they take so many times its cache
TARGETS = {"decode": "at least 0.50 of the measured bandwidth, stretch 0.70",
           "traced 7": "at most 3 x the bytes' floor", "traced / untraced": "at most 1.10"}
TILINGS = {  # rows, tokens of a program, warps, loads in flight, groups, splits (0: as chosen)
    1: [(4, 1, 4, 3, 4), (8, 1, 4, 3, 2), (16, 1, 4, 3, 2), (8, 1, 2, 3, 2), (16, 1, 8, 3, 4)],
    7: [(16, 16, 1), (32, 16, 1), (64, 16, 2), (64, 16, 4), (128, 16, 4)],
    128: [(64, 32, 2), (128, 32, 4), (64, 64, 4), (128, 64, 8)],
}


class Clock:
    """Time work on the device, with events, or by the host where there is none (a dry run)."""

    def __init__(self, device: str) -> None:
        self.device = device

    def wait(self) -> None:
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()

    def samples(self, work: Callable[[], object], runs: int = RUNS, warm: int = 2) -> list[float]:
        """Milliseconds of each run, from an idle device to an idle device."""
        out = []
        for i in range(warm + runs):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if i >= warm:
                out.append((time.perf_counter() - start) * 1e3)
        return out

    def replayed(self, work: Callable[[], object], n: int) -> float:
        """Milliseconds of one call among n in a captured graph: what the device takes, without the host's launches."""
        import torch

        work()
        if self.device == "cpu":
            return statistics.median(self.samples(work, 1, 0))
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(n):
                work()
        return statistics.median(self.samples(graph.replay, 5, 1)) / n


def ceilings(clock: Clock) -> dict[str, float]:
    """Copy bandwidth, bytes read and written, in GB/s; dense bfloat16 and float32 rates in TFLOP/s, on random data."""
    import torch

    small = clock.device == "cpu"
    n_bytes, n = (1 << 20, 128) if small else (4 << 30, 8192)
    source = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy = statistics.median(clock.samples(lambda a=target, b=source: a.copy_(b)))
    rates = {"copy_gb_s": 2 * n_bytes / copy / 1e6}
    del source, target
    for name, kind in (("bf16_tflop_s", torch.bfloat16), ("f32_tflop_s", torch.float32)):
        a, b = (torch.randn(n, n, device=clock.device).to(kind) for _ in range(2))
        rates[name] = 2 * n**3 / statistics.median(clock.samples(lambda a=a, b=b: a @ b)) / 1e9
    return rates


def products(clock: Clock, side: Any, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Time the products of one layer and the head, each tiling; several layers take turns, so that no cache holds them.
    """
    import torch

    from core.kernels.gpu.products import Tiling, is_one_token, multiply_planes, split

    model, rows = side.model, []
    for part in ("attn_k", "attn_q", "ffn_up", "ffn_down"):
        names = [f"blk.{i}.{part}.weight" for i in range(model.arch.n_layer)]
        quant = model.file.weight(names[-1]).quant
        planes = [model.resident.planes(model.file.weight(n)) for n in names if model.file.weight(n).quant == quant]
        planes = planes[:PLANES]
        cached = sum(p.n_bytes for p in planes) < FRESH * torch.cuda.get_device_properties(0).L2_cache_size
        for tokens, tilings in TILINGS.items():
            x = torch.randn(tokens, planes[0].cols, device=clock.device)
            ready = split(x, is_one_token(quant, x))
            for how in (None, *(Tiling(*t) for t in tilings)):
                turn = iter(range(1 << 30))
                try:
                    ms = clock.replayed(
                        lambda p=planes, r=ready, h=how, t=turn: multiply_planes(p[next(t) % len(p)], r, h), PLANES)
                except Exception as error:  # noqa: BLE001 (a tiling that this card cannot hold is a result)
                    rows.append({"part": part, "tokens": tokens, "tiling": str(how), "failed": repr(error)[:200]})
                    continue
                rows.append({
                    "part": part, "quant": quant, "rows": planes[0].rows, "cols": planes[0].cols, "tokens": tokens,
                    "tiling": "chosen" if how is None else str(how), "ms": ms, "cached": cached,
                    "bandwidth": planes[0].n_bytes / ms / 1e6 / rates["copy_gb_s"],
                    "tflop_s": 2 * tokens * planes[0].rows * planes[0].cols / ms / 1e9})
    return rows


def decode(clock: Clock, side: Any, rates: dict[str, float]) -> dict[str, Any]:
    """Milliseconds a token of greedy decoding through a captured graph, and of the forward launched by the host."""
    from core.system.cancel import never
    from core.trace.run import _decode, continue_greedily

    n_prompt, n_token = (2, 4) if clock.device == "cpu" else (DECODE_PROMPT, N_DECODE)
    prompt, marks = [i * 7919 % side.model.arch.n_vocab for i in range(n_prompt)], list[float]()
    continue_greedily(side, prompt, n_token, (), lambda i: marks.append(time.perf_counter()), never)
    captured = [(b - a) * 1e3 for a, b in pairwise(marks[2:])]
    marks.clear()
    for _ in islice(_decode(side, prompt, never), n_token):
        marks.append(time.perf_counter())
    eager = [(b - a) * 1e3 for a, b in pairwise(marks[2:])]
    result: dict[str, Any] = {"captured_ms": captured, "launched_ms": eager}
    if captured:
        ms = statistics.median(captured)
        result |= {"ms": ms, "tokens_s": 1e3 / ms, "bandwidth": moved(side) / ms / 1e6 / rates["copy_gb_s"]}
    return result


def moved(side: Any) -> int:
    """Bytes of weights that a token must read: all planes but the embedding, of which it reads a row."""
    table = side.model.file.weight("token_embd.weight").name
    return sum(p.n_bytes for name, p in side.model.resident._planes.items()
               if name != table or side.model.head == table)


def prompts(clock: Clock, side: Any, rates: dict[str, float], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Milliseconds of whole prompts, untraced and traced in turns, and what the host needs to launch one."""
    from core.model.lockstep import run_lockstep
    from core.trace.gpu_tap import record_on_device
    from core.trace.taps import no_tap

    floor, rows = moved(side) / rates["copy_gb_s"] / 1e6, []
    for n in sizes:
        ids = [i * 7919 % side.model.arch.n_vocab for i in range(n)]

        def run(traced: bool, ids: list[int] = ids, n: int = n) -> None:
            run_lockstep([side.forward_run(ids, record_on_device(lambda place, stats: None, n) if traced else no_tap)])

        taken: dict[str, list[float]] = {"untraced_ms": [], "traced_ms": [], "launch_ms": []}
        for i in range(1 if clock.device == "cpu" else 2 + (RUNS if n < LONG_TOKENS else LONG_RUNS)):
            for key, traced in (("untraced_ms", False), ("traced_ms", True)):
                ms = clock.samples(lambda t=traced: run(t), 1, 0)[0]
                if i >= 2 or clock.device == "cpu":
                    taken[key].append(ms)
            start = time.perf_counter()
            run(False)
            taken["launch_ms"].append((time.perf_counter() - start) * 1e3)
            clock.wait()
        middle = {key: statistics.median(values) for key, values in taken.items()}
        rows.append({"tokens": n, **middle, "samples": taken, "floor_ms": floor,
                     "traced / floor": middle["traced_ms"] / floor,
                     "traced / untraced": middle["traced_ms"] / middle["untraced_ms"],
                     "tflop_s": 2 * n * weights_of(side) / middle["untraced_ms"] / 1e9})
    return rows


def weights_of(side: Any) -> int:
    """Weights that each token is multiplied with, without the head (the last token's only)."""
    shapes = [w.shape for name, w in side.model.file.weights.items() if name.startswith("blk.") and len(w.shape) == 2]
    return sum(rows * cols for rows, cols in shapes)


def same_bits_when_traced(side: Any, n: int) -> bool:
    """Whether a watched prompt leaves the logits' bits as they are."""
    from core.system.cancel import never
    from core.trace.events import no_emit
    from core.trace.run import run_traced

    ids = [i * 7919 % side.model.arch.n_vocab for i in range(n)]
    _, _, same = run_traced(side, ids, witness=True, layers=None, keep=None, emit=no_emit, cancelled=never)
    return bool(same)


def table(result: dict[str, Any]) -> list[str]:
    """What a person reads, as Markdown."""
    rates, lines = result["ceilings"], [f"# {result['device']}", "", "$ " + " ".join(result["command"]), ""]
    lines += [f"{k}: {v}" for k, v in result["versions"].items()]
    lines += [f"copy {rates['copy_gb_s']:.0f} GB/s, bfloat16 {rates['bf16_tflop_s']:.0f} TFLOP/s, float32 "
              f"{rates['f32_tflop_s']:.1f} TFLOP/s; weights {result['bytes'] / 1e9:.2f} GB; first prompt, with upload "
              f"and compiling, {result['first_s']:.1f} s; traced logits have the untraced bits: {result['same_bits']}",
              ""]
    lines += ["| prompt | untraced ms | traced ms | launches ms | traced / floor | traced / untraced | TFLOP/s |",
              "|---|---|---|---|---|---|---|"]
    lines += [f"| {r['tokens']} | {r['untraced_ms']:.2f} | {r['traced_ms']:.2f} | {r['launch_ms']:.2f} | "
              f"{r['traced / floor']:.2f} | {r['traced / untraced']:.2f} | {r['tflop_s']:.1f} |"
              for r in result["prompts"]]
    told = result["decode"]
    if "ms" in told:
        lines += ["", f"decode: {told['ms']:.3f} ms a token, {told['tokens_s']:.0f} tokens/s, {told['bandwidth']:.2f} "
                  f"of the measured bandwidth ({TARGETS['decode']}); launched by the host "
                  f"{statistics.median(told['launched_ms']):.2f} ms"]
    lines += ["", f"targets: traced 7 tokens {TARGETS['traced 7']}; tracing {TARGETS['traced / untraced']}", "",
              "| product | tokens | tiling | us | of bandwidth | TFLOP/s |", "|---|---|---|---|---|---|"]
    for r in result["products"]:
        figures = r["failed"] if "failed" in r else (
            f"{r['ms'] * 1e3:.1f} | {r['bandwidth']:.2f}{' (cached)' if r['cached'] else ''} | {r['tflop_s']:.1f}")
        lines.append(f"| {r['part']} {r.get('quant', '')} | {r['tokens']} | {r['tiling']} | {figures} |")
    return lines


def measure(args: argparse.Namespace, model: Path) -> Iterator[dict[str, Any]]:
    """Everything, in the order of the table; yields what is known after each part, so that none is lost."""
    import torch
    import triton

    from core.formats.open_model import open_model
    from core.trace.run import open_side

    device = "cpu" if args.dry_run else "cuda:0"
    clock = Clock(device)
    rates = ceilings(clock)
    side = open_side(open_model(model), device)
    if args.dry_run:
        from dataclasses import replace

        from core.kernels.gpu import products as gpu_products
        from core.model.gpu_weights import Resident

        gpu_products.tiling = lambda rows, n_group, tokens: gpu_products.Tiling(256, 16, 1)  # few programs
        side = replace(side, model=replace(side.model, resident=Resident(torch.device("cpu"))))
    assert side.model.resident is not None, "no kernels here: see apr-tui doctor"
    sizes = (3,) if args.dry_run else PROMPTS
    start = time.perf_counter()
    same = same_bits_when_traced(side, sizes[0])
    clock.wait()
    first_s = time.perf_counter() - start
    result: dict[str, Any] = {
        "device": "dry run on a CPU" if args.dry_run else torch.cuda.get_device_name(0),
        "command": ["python", "-m", "tests.bench.gpu", *sys.argv[1:]],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "shape": args.shape, "ceilings": rates, "first_s": first_s, "same_bits": same, "bytes": moved(side),
    }
    yield result
    yield (result := result | {"decode": decode(clock, side, rates)})
    yield (result := result | {"prompts": prompts(clock, side, rates, sizes)})
    yield result | {"products": [] if args.dry_run else products(clock, side, rates)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="7b")
    parser.add_argument("--model", type=Path, help="a GGUF file, instead of a random one")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        args.shape = "tiny"
    from tests.bench.random_model import write_random_model

    with tempfile.TemporaryDirectory() as folder:
        model = args.model or write_random_model(Path(folder) / f"{args.shape}.gguf", args.shape)
        args.out.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for result in measure(args, model):
            (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
            lines = table({"decode": {}, "prompts": [], "products": []} | result)
            (args.out / "gpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
