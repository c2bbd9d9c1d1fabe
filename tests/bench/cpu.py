"""Compare our forward with llama.cpp's on one machine in one run, and write the table and every sample into a folder.

python -m tests.bench.cpu --model FILE [--model FILE] [--prompts 7,32,128,512] [--computes f32,q8,bf16] [--runs 5]
                          [--threads 2] [--parts prompts,decode,memory,start,decoders] [--open FILE]
                          [--pair A B] [--out evidence/cpu-bench]
Files of other types: random_model.py and experts.py write them. --pair: a real file and it again in another type, for
the time of whole commands. The engines (engines.py) take turns, so that a busy machine slows both; medians are
compared, and what they are of is in bench.json. A figure beyond its target is called missed: nothing here hides one,
and nothing here judges more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.formats.open_model import open_model
from tests.bench.commands import Samples, take_commands, take_start
from tests.bench.decode_speed import compiled_rates
from tests.bench.engines import Child, start_llama

N_DECODE = 24
WITNESS_TOKENS = 128  # longer prompts take minutes with a witness and say the same
SHORT_TOKENS, SHORT_MORE = 32, 3  # prompts of a fraction of a second are run more often
PARTS = ("prompts", "decode", "memory", "start", "decoders")
TRACED = {"f32": 0.7, "q8": 0.6, "bf16": 0.7}  # of llama.cpp's traced time, at most
EXPERTS = 1.0                                   # the same of a file of experts, at any compute
WATCHED, WITH_WITNESS, DECODED, PEAK, OPENED = 1.05, 2.0, 1.0, 1.0, 0.3
SECONDS = {"first row, warm": 1.5, "first row, cold": None, "compiling": 15.0, "import torch alone": None,
           "trace A": 2.5, "check A": 3.0, "compare A B": 4.0, "bisect A B": 10.0}
LEAST_RATE = 500.0  # million weights a second that one core decodes


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure with the bound it is held to. target None: told, not held to anything."""

    model: str
    what: str
    figure: float
    target: float | None
    of: str  # the two sides, or the unit
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Say met or missed; nothing where there is no target."""
        if self.target is None:
            return ""
        return "met" if (self.figure >= self.target) == self.at_least or self.figure == self.target else "MISSED"


def take_prompts(children: Mapping[str, Child], prompts: list[int], computes: list[str], runs: int) -> Samples:
    """Seconds of each traced prompt, the engines in turns; then ours untraced, traced and with a witness in turns."""
    engines = [("llama.cpp", "traced", "")] if "llama.cpp" in children else []
    engines += [("ours", "traced", compute) for compute in computes]
    alone = [("ours", way, computes[0]) for way in ("untraced", "traced", "witness")]
    samples: Samples = {}
    for n in prompts:
        for what, ways in (("", engines), ("alone ", alone if n <= WITNESS_TOKENS else alone[:2])):
            for name, way, compute in ways:
                children[name].ask("prompt", min(n, 32), way, compute)
            for i in range(runs * (SHORT_MORE if n <= SHORT_TOKENS else 1)):
                for name, way, compute in ways[::1 - 2 * (i % 2)]:  # who comes after another engine finds cold caches
                    key = f"{n} tokens, {what}{' '.join(filter(None, (name, compute, way)))}"
                    samples.setdefault(key, []).append(children[name].ask("prompt", n, way, compute))
                    show(f"{key} {samples[key][-1]:.3f} s")
    return samples


def take_decoding(children: Mapping[str, Child], runs: int) -> Samples:
    """Tokens a second of greedy decoding."""
    samples: Samples = {}
    for _ in range(runs):
        for name, child in children.items():
            samples.setdefault(f"decode, {name}", []).append(N_DECODE / child.ask("decode", N_DECODE))
    return samples


def take_memory(children: Mapping[str, Child], model: Path, threads: int, prompts: list[int]) -> Samples:
    """GiB at its peak of a fresh process after a prompt: ours traced, llama.cpp untraced (no torch, no statistics)."""
    samples: Samples = {}
    for n in prompts:
        for name, child in children.items():
            fresh = Child(child.name, model, threads)
            fresh.ask("prompt", n, "traced" if name == "ours" else "untraced", "f32")
            samples[f"peak, {n} tokens, {name}"] = [fresh.ask("memory")]
            fresh.end()
    return samples


def take(model: Path, args: argparse.Namespace, abouts: dict[str, str]) -> Samples:
    """Measure all parts of one file."""
    ours, theirs = Child("ours", model, args.threads), start_llama(model, args.threads)
    assert ours.about, "our own engine does not start"
    children = {"ours": ours} | ({"llama.cpp": theirs} if theirs else {})
    abouts.update({name: child.about for name, child in children.items()})
    samples: Samples = {}
    if "prompts" in args.parts:
        samples |= take_prompts(children, args.prompts, args.computes, args.runs)
    if "decode" in args.parts:
        samples |= take_decoding(children, args.runs)
    for child in children.values():
        child.end()
    if "memory" in args.parts:
        samples |= take_memory(children, model, args.threads, sorted({min(args.prompts), max(args.prompts)}))
    if "start" in args.parts:
        samples |= take_start(model, args.threads, args.runs, args.open)
    return samples


def take_rest(args: argparse.Namespace) -> dict[str, Samples]:
    """Measure what is no file's: whole commands on the pair, and how fast each type is decoded by one core."""
    samples: dict[str, Samples] = {}
    if args.pair:
        samples[" and ".join(path.name for path in args.pair)] = take_commands(*args.pair, args.threads, args.runs)
    if "decoders" in args.parts:
        samples["any"] = {f"decoding alone, {quant}": [rate] for quant, rate in compiled_rates(threads=1).items()}
    return samples


def rows_of(model: str, samples: Samples, computes: list[str], has_experts: bool = False) -> list[Row]:
    """The lines of one file's table, each with its target where it has one."""
    median = {key: statistics.median(values) for key, values in samples.items()}
    rows: list[Row] = []

    def ratio(what: str, a: str, b: str, target: float | None, at_least: bool = False) -> None:
        if a in median and b in median:
            rows.append(Row(model, what, median[a] / median[b], target,
                            f"{median[a]:.4g} / {median[b]:.4g} {unit}", at_least))

    unit = "s"
    prompts = sorted({int(key.split()[0]) for key in median if key[0].isdigit()})
    for compute in computes:
        for n in prompts:
            ratio(f"{compute}, {n} tokens: traced / llama.cpp traced", f"{n} tokens, ours {compute} traced",
                  f"{n} tokens, llama.cpp traced", EXPERTS if has_experts else TRACED[compute])
    for n in prompts:
        ratio(f"{computes[0]}, {n} tokens: traced / untraced", f"{n} tokens, alone ours {computes[0]} traced",
              f"{n} tokens, alone ours {computes[0]} untraced", WATCHED)
    for n in prompts:
        ratio(f"{computes[0]}, {n} tokens: with witness / without", f"{n} tokens, alone ours {computes[0]} witness",
              f"{n} tokens, alone ours {computes[0]} traced", WITH_WITNESS)
    unit = "tokens/s"
    ratio("f32: greedy decode / llama.cpp", "decode, ours", "decode, llama.cpp", DECODED, at_least=True)
    unit = "GiB"
    for n in sorted({int(key.split()[1]) for key in median if key.startswith("peak")}):
        ratio(f"f32, {n} tokens: peak memory, traced / llama.cpp untraced", f"peak, {n} tokens, ours",
              f"peak, {n} tokens, llama.cpp", PEAK)
    bounds = SECONDS | {key: OPENED for key in median if key.startswith("opening")}
    rows += [Row(model, key, median[key], target, "s") for key, target in bounds.items() if key in median]
    rows += [Row(model, key, rate, LEAST_RATE, "million weights/s a core", at_least=True)
             for key, rate in median.items() if key.startswith("decoding alone")]
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| file | what | measured | target | | of |", "|---|---|---|---|---|---|"]
    for row in rows:
        bound = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:g}"
        lines.append(f"| {row.model} | {row.what} | {row.figure:.2f} | {bound} | {row.verdict} | {row.of} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """What the figures hang on: processor, memory, system, versions."""
    from core.kernels.cpu.instruction_sets import processor_flags

    told = {"system": platform.system(), "release": platform.release(), "machine": platform.machine(),
            "processors": os.cpu_count(), "python": platform.python_version()}
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        told["processor"] = names[0].partition(":")[2].strip() if names else ""
        told["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    told["flags"] = sorted(f for f in processor_flags() if f.startswith(("avx", "amx", "fma", "f16c")))
    for package in ("torch", "numpy", "llama-cpp-python"):
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            told[package] = None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return told | {"commit": commit.stdout.strip() or None}


def command_of(args: argparse.Namespace) -> str:
    """The command that repeats the run; files by their names alone."""
    words = [f"--model {path.name}" for path in args.model] + ([f"--open {args.open.name}"] if args.open else [])
    words += [f"--pair {' '.join(path.name for path in args.pair)}"] if args.pair else []
    words += [f"--prompts {','.join(map(str, args.prompts))}", f"--computes {','.join(args.computes)}",
              f"--runs {args.runs}", f"--threads {args.threads}", f"--parts {','.join(args.parts)}"]
    return " ".join(["python -m tests.bench.cpu", *words])


def show(line: str) -> None:
    """Tell on stderr how far the run is."""
    print(line, file=sys.stderr, flush=True)


def read_arguments() -> argparse.Namespace:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append")
    parser.add_argument("--prompts", type=lambda s: [int(n) for n in s.split(",")], default=[7, 32, 128, 512])
    parser.add_argument("--computes", type=lambda s: s.split(","), default=["f32", "q8", "bf16"])
    parser.add_argument("--parts", type=lambda s: s.split(","), default=list(PARTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--open", type=Path, help="a large file whose opening is timed too")
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("A", "B"), help="files for the time of whole commands")
    parser.add_argument("--out", type=Path, default=Path("evidence/cpu-bench"))
    return parser.parse_args()


def main() -> None:
    """Run it."""
    args, began, abouts = read_arguments(), time.time(), dict[str, str]()
    args.out.mkdir(parents=True, exist_ok=True)
    samples = {path.name: take(path, args, abouts) for path in args.model} | take_rest(args)
    experts = {path.name for path in args.model if any(k.endswith(".expert_count") for k in open_model(path).keys)}
    rows = [row for name, taken in samples.items() for row in rows_of(name, taken, args.computes, name in experts)]
    told, missed = machine(), [row for row in rows if row.verdict == "MISSED"]
    head = [f"`{command_of(args)}`", f"{told.get('processor', '')}, {told['processors']} processors, "
            f"{told['system']} {told['release']}; medians of {args.runs} "
            f"({args.runs * SHORT_MORE} up to {SHORT_TOKENS} tokens); {(time.time() - began) / 60:.0f} minutes."]
    head += [f"- {name}: {about}" for name, about in abouts.items()]
    head.append(f"{len(missed)} of {sum(row.target is not None for row in rows)} targets are missed"
                + (": " + "; ".join(f"{r.model} {r.what} {r.figure:.2f}" for r in missed) if missed else "") + ".")
    text = "\n\n".join(["\n".join(head), table(rows)])
    (args.out / "table.md").write_text(text)
    (args.out / "bench.json").write_text(json.dumps({
        "command": command_of(args), "machine": told, "about": abouts, "rows": [asdict(row) for row in rows],
        "medians": {m: {k: statistics.median(v) for k, v in s.items()} for m, s in samples.items()},
        "samples": samples}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
