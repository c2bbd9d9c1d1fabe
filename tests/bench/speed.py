"""Time our forward against llama.cpp's on one file, in one run, and print ratios: prompts, decoding, memory, first row.

python -m tests.bench.speed --model FILE [--prompts 7,32,128,512] [--runs 5] [--threads 2] [--out FILE.json]
Each engine runs in a child process of its own and they take turns, so that a busy machine slows both. Traced means all
stages with all statistics, on both sides by the same code; logits are of the last token; our witness is off.
llama.cpp is llama-cpp-python with its defaults; waiting threads sleep on both sides (OMP_WAIT_POLICY=PASSIVE).
It judges nothing: the targets are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_DECODE, DECODE_PROMPT = 24, 16
TARGETS = {"traced / llama.cpp traced": 1.5, "traced / untraced": 1.05, "memory": 1.0, "decode": 0.5, "first row": 1.5}


def tokens_of(n: int, n_vocab: int) -> list[int]:
    """A prompt of n tokens spread over the vocabulary."""
    return [i * 7919 % (n_vocab - 1000) for i in range(n)]


class Ours:
    """This project's forward."""

    def __init__(self, model: Path, threads: int) -> None:
        import torch

        from core import reader
        from core.matmul import kernel_path
        from core.run import open_side

        self.side = open_side(reader.open_model(model), "cpu", os.environ.get("APR_TUI_BENCH_COMPUTE", "f32"), threads)
        self.about = f"apr-tui, torch {torch.__version__}: {kernel_path(self.side.compute, torch.device('cpu'))}"

    def prompt(self, n: int, traced: bool) -> float:
        from core.lanes import drive
        from core.tap import no_tap, record

        tap = record(lambda place, stats: None, n) if traced else no_tap
        start = time.perf_counter()
        drive([self.side.lane(tokens_of(n, self.side.model.arch.n_vocab), tap)])
        return time.perf_counter() - start

    def decode(self, n: int) -> float:
        from core.run import continue_greedily

        said: list[float] = []
        tokens = tokens_of(DECODE_PROMPT, self.side.model.arch.n_vocab)
        continue_greedily(self.side, tokens, n + 1, (), lambda i: said.append(time.perf_counter()), lambda: False)
        return said[-1] - said[0]


class LlamaCpp:
    """llama.cpp, as llama-cpp-python brings it, with its default context."""

    def __init__(self, model: Path, threads: int, repack: bool) -> None:
        import llama_cpp
        from llama_cpp import llama_cpp as api

        self.api, self.threads = api, threads
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.n_gpu_layers, options.use_extra_bufts = 0, repack
        self.model = api.llama_model_load_from_file(str(model).encode(), options)
        assert self.model, f"llama.cpp does not load {model}"
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.libraries = Path(llama_cpp.__file__).parent / "lib"
        self.about = f"llama-cpp-python {llama_cpp.__version__}, {'' if repack else 'not '}repacking weights"
        self.plain = self._context(None)

    def _context(self, watcher: object | None) -> Any:
        options = self.api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 1024, 512, 512
        options.n_threads = options.n_threads_batch = self.threads
        if watcher is not None:
            self.callback = self.api.ggml_backend_sched_eval_callback(watcher)
            options.cb_eval = self.callback
        context = self.api.llama_init_from_model(self.model, options)
        assert context, "llama.cpp makes no context"
        return context

    def _feed(self, context: Any, tokens: list[int]) -> int:
        """Run the tokens after what the cache holds; return the likeliest next one."""
        import numpy as np

        array = (self.api.llama_token * len(tokens))(*tokens)  # named: the batch only points to it
        code = self.api.llama_decode(context, self.api.llama_batch_get_one(array, len(tokens)))
        assert code == 0, f"llama.cpp stopped with code {code}"
        return int(np.ctypeslib.as_array(self.api.llama_get_logits_ith(context, -1), (self.n_vocab,)).argmax())

    def prompt(self, n: int, traced: bool) -> float:
        context = self._context(self._watcher(n)) if traced else self.plain
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        start = time.perf_counter()
        self._feed(context, tokens_of(n, self.n_vocab))
        taken = time.perf_counter() - start
        if traced:
            self.api.llama_free(context)
        return taken

    def _watcher(self, n: int) -> object:
        import numpy as np
        import torch

        from core.sources.engine import Ask
        from core.sources.llama_cpp import Watcher, _Tensor
        from core.tap import measure

        class Measuring(Watcher):
            def _take(self, address: int, part: tuple[int | None, str]) -> None:
                width = _Tensor.from_address(address).ne[0]
                out = np.empty(self._ggml.ggml_nelements(address), np.float32)
                self._ggml.ggml_backend_tensor_get(address, out.ctypes.data, 0, out.nbytes)
                measure(torch.from_numpy(out).reshape(-1, width))

        return Measuring(Ask("", tuple(range(n))), Path(), self.libraries)

    def decode(self, n: int) -> float:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.plain), True)
        token = self._feed(self.plain, tokens_of(DECODE_PROMPT, self.n_vocab))
        start = time.perf_counter()
        for _ in range(n):
            token = self._feed(self.plain, [token])
        return time.perf_counter() - start


ENGINES: dict[str, Callable[[Path, int], Any]] = {
    "ours": Ours,
    "llama.cpp": lambda model, threads: LlamaCpp(model, threads, True),
    "llama.cpp as stored": lambda model, threads: LlamaCpp(model, threads, False),
}


def serve(name: str, model: Path, threads: int) -> None:
    """Answer a line of JSON for each request on stdin: the seconds, or the peak memory."""
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an engine prints goes to stderr
    engine = ENGINES[name](model, threads)
    print(json.dumps(engine.about), file=talk)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps(peak / (2**30 if sys.platform == "darwin" else 2**20)), file=talk)
        else:
            print(json.dumps(getattr(engine, what)(*arguments)), file=talk)


class Child:
    """An engine in a process of its own; ask() returns None once it has died."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        self.name = name
        options = ["--serve", name, "--model", str(model), "--threads", str(threads)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.speed", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, bufsize=1, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
        self.about = self._read()

    def ask(self, *request: object) -> Any:
        assert self.process.stdin is not None
        try:
            print(json.dumps(request), file=self.process.stdin)
        except BrokenPipeError:
            return None
        return self._read()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None


def start_llama(model: Path, threads: int) -> Child | None:
    """Start llama.cpp with repacked weights, or without where that build crashes; None where it is not installed."""
    for name in ("llama.cpp", "llama.cpp as stored"):
        child = Child(name, model, threads)
        if child.about and all(child.ask("prompt", n, False) is not None for n in (2, 32)):
            return child
    return None


def peak_memory(name: str, model: Path, threads: int, n: int) -> float:
    """GiB of a fresh child after one prompt: ours traced; llama.cpp untraced, without the torch of our statistics."""
    child = Child(name, model, threads)
    child.ask("prompt", n, name == "ours")
    peak: float = child.ask("memory")
    child.end()
    return peak


def first_row(model: Path, threads: int) -> float:
    """Seconds from starting python to the first layer's statistics of a traced default prompt."""
    code = ("import sys; from pathlib import Path; from core import session; from core.source import Prompt, Source\n"
            "def emit(e):\n if e.kind == 'cell' and e.place[0] is not None: print('row', flush=True); sys.exit()\n"
            f"session.trace(Source(Path({str(model)!r}), threads={threads}), Prompt(), emit=emit, witness=False)")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    return time.perf_counter() - start


def compare(model: Path, prompts: list[int], runs: int, threads: int) -> dict[str, Any]:
    """Measure everything in turns; medians."""
    ours, theirs = Child("ours", model, threads), start_llama(model, threads)
    children = {"ours": ours} | ({"llama.cpp": theirs} if theirs else {})
    result: dict[str, Any] = {
        "model": model.name, "threads": threads, "runs": runs,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "about": {name: child.about for name, child in children.items()}, "prompts": {}}
    for n in prompts:
        seconds: dict[str, list[float]] = {}
        for _ in range(runs + 1):
            for name, child in children.items():
                for traced in (False, True):
                    key = f"{name} {'traced' if traced else 'untraced'}"
                    seconds.setdefault(key, []).append(child.ask("prompt", n, traced))
        result["prompts"][n] = {key: statistics.median(values[1:]) for key, values in seconds.items()}
        print(f"{n:4} tokens  " + "  ".join(f"{k} {v:.3f} s" for k, v in result["prompts"][n].items()), flush=True)
    rates: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(runs):
        for name, child in children.items():
            rates[name].append(N_DECODE / child.ask("decode", N_DECODE))
    result["decode"] = {name: statistics.median(values) for name, values in rates.items()}
    for child in children.values():
        child.end()
    result["memory"] = {name: peak_memory(child.name, model, threads, max(prompts)) for name, child in children.items()}
    result["first_row"] = statistics.median(first_row(model, threads) for _ in range(3))
    return result


PAIRS = {
    "traced / llama.cpp traced": ("ours traced", "llama.cpp traced"),
    "untraced / llama.cpp untraced": ("ours untraced", "llama.cpp untraced"),
    "traced / untraced": ("ours traced", "ours untraced"),
}


def ratios(result: dict[str, Any]) -> list[str]:
    """The lines of the table, each with its target."""
    lines = []
    for n, seconds in result["prompts"].items():
        for name, (a, b) in PAIRS.items():
            if a in seconds and b in seconds:
                target = f"  (at most {TARGETS[name]:g})" if name in TARGETS else ""
                lines.append(f"{n:4} tokens, {name:30} {seconds[a] / seconds[b]:6.2f}{target}")
    for what, unit, bound in (("decode", "tokens/s", "at least"), ("memory", "GiB at its peak", "at most")):
        figures = result[what]
        lines.append(f"{what}, {unit}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()))
        if "llama.cpp" in figures:
            lines[-1] += f"; ratio {figures['ours'] / figures['llama.cpp']:.2f}  ({bound} {TARGETS[what]:g})"
    return [*lines, f"first row after {result['first_row']:.2f} s  (at most {TARGETS['first row']:g})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", default="7,32,128,512")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=list(ENGINES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.model, args.threads)
    result = compare(args.model, [int(n) for n in args.prompts.split(",")], args.runs, args.threads)
    print("\n".join([*(f"{name}: {about}" for name, about in result["about"].items()), *ratios(result)]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
