"""Two engines in processes of their own, ours and llama.cpp, that time what cpu.py asks for. Nothing is compared here.

python -m tests.bench.engines NAME MODEL THREADS answers a line of JSON for each line of JSON on stdin. Traced means all
stages with all statistics, on both sides by the same code. llama.cpp is llama-cpp-python with its defaults; waiting
threads sleep on both sides (OMP_WAIT_POLICY=PASSIVE).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DECODE_PROMPT = 16
REPACKED, AS_STORED = "llama.cpp", "llama.cpp as stored"


def tokens_of(n: int, n_vocab: int) -> list[int]:
    """A prompt of n tokens spread over the vocabulary."""
    return [i * 7919 % (n_vocab - 1000) for i in range(n)]


class Ours:
    """This project's forward."""

    def __init__(self, model: Path, threads: int) -> None:
        from core.formats import open_model
        from core.session import prepare
        from core.trace.events import no_emit

        prepare.load_torch("cpu", no_emit)
        import torch

        from core.model.matmul import kernel_path
        from core.quant.activations import COMPUTES
        from core.trace.run import open_side

        file = open_model.open_model(model)
        self.sides = {compute: open_side(file, "cpu", compute, threads) for compute in COMPUTES}
        self.n_vocab = self.sides["f32"].model.arch.n_vocab
        paths = "; ".join(f"{compute}: {kernel_path(compute, torch.device('cpu'))}" for compute in COMPUTES)
        self.about = f"apr-tui, torch {torch.__version__}; {paths}"

    def prompt(self, n: int, way: str, compute: str = "f32") -> float:
        """Seconds of one prompt. way: untraced, traced, or witness (traced, with the witness beside it)."""
        from core.model.lockstep import run_lockstep
        from core.system.cancel import never
        from core.trace.events import no_emit
        from core.trace.run import run_traced
        from core.trace.taps import no_tap

        side, tokens = self.sides[compute], tokens_of(n, self.n_vocab)
        start = time.perf_counter()
        if way == "untraced":
            run_lockstep([side.forward_run(tokens, no_tap)])
        else:
            run_traced(side, tokens, witness=way == "witness", layers=None, keep=None, emit=no_emit, cancelled=never)
        return time.perf_counter() - start

    def decode(self, n: int) -> float:
        """Seconds of n greedy tokens after a short prompt."""
        from core.trace.run import continue_greedily

        said: list[float] = []
        tokens = tokens_of(DECODE_PROMPT, self.n_vocab)
        continue_greedily(
            self.sides["f32"], tokens, n + 1, (), lambda i: said.append(time.perf_counter()), lambda: False)
        return said[-1] - said[0]


class LlamaCpp:
    """llama.cpp, as llama-cpp-python brings it, with its default context."""

    def __init__(self, model: Path, threads: int, repack: bool) -> None:
        import llama_cpp
        from llama_cpp import llama_cpp as api

        self.api, self.threads, self.path = api, threads, str(model)
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.n_gpu_layers, options.use_extra_bufts = 0, repack
        self.model = api.llama_model_load_from_file(str(model).encode(), options)
        assert self.model, f"llama.cpp does not load {model}"
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.libraries = Path(llama_cpp.__file__).parent / "lib"
        self.about = f"llama-cpp-python {llama_cpp.__version__}, {'' if repack else 'not '}repacking weights"
        self.plain = self._context(None)

    def prompt(self, n: int, way: str, compute: str = "") -> float:
        """Seconds of one prompt. way: untraced or traced."""
        context = self._context(self._watcher(n)) if way == "traced" else self.plain
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
        start = time.perf_counter()
        self._feed(context, tokens_of(n, self.n_vocab))
        taken = time.perf_counter() - start
        if way == "traced":
            self.api.llama_free(context)
        return taken

    def decode(self, n: int) -> float:
        """Seconds of n greedy tokens after a short prompt."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.plain), True)
        token = self._feed(self.plain, tokens_of(DECODE_PROMPT, self.n_vocab))
        start = time.perf_counter()
        for _ in range(n):
            token = self._feed(self.plain, [token])
        return time.perf_counter() - start

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
        """Run the tokens after what the cache holds; return the likeliest next one. No numpy: memory is measured."""
        array = (self.api.llama_token * len(tokens))(*tokens)  # named: the batch only points to it
        code = self.api.llama_decode(context, self.api.llama_batch_get_one(array, len(tokens)))
        assert code == 0, f"llama.cpp stopped with code {code}"
        logits = self.api.llama_get_logits_ith(context, -1)
        row = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.n_vocab)).contents[:]
        return row.index(max(row))

    def _watcher(self, n: int) -> object:
        import numpy as np
        import torch

        from core.sources.engines.llama_cpp import Watcher, _Tensor
        from core.sources.engines.process import Ask
        from core.trace.taps import measure

        class Measuring(Watcher):
            def _take(self, address: int, part: object) -> None:
                width = _Tensor.from_address(address).ne[0]
                out = np.empty(self._ggml.ggml_nelements(address), np.float32)
                self._ggml.ggml_backend_tensor_get(address, out.ctypes.data, 0, out.nbytes)
                measure(torch.from_numpy(out).reshape(-1, width))

        return Measuring(Ask(self.path, tuple(range(n))), Path(), self.libraries)


ENGINES: dict[str, Callable[[Path, int], Any]] = {
    "ours": Ours,
    REPACKED: lambda model, threads: LlamaCpp(model, threads, True),
    AS_STORED: lambda model, threads: LlamaCpp(model, threads, False),
}


def serve(name: str, model: Path, threads: int) -> None:
    """Answer each request on stdin: the seconds, or the peak memory in GiB."""
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
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.engines", name, str(model), str(threads)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
        self.about = self._read()

    def ask(self, *request: object) -> Any:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(request), file=self.process.stdin)
        except BrokenPipeError:
            return None
        return self._read()

    def end(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None


def start_llama(model: Path, threads: int) -> Child | None:
    """Start llama.cpp with repacked weights, or without where that build crashes; None where it is not installed."""
    for name in (REPACKED, AS_STORED):
        child = Child(name, model, threads)
        if child.about and all(child.ask("prompt", n, "untraced") is not None for n in (2, 32)):
            if name == AS_STORED:
                child.about += " (its repacking build ends in a crash on this machine)"
            return child
    return None


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
