"""Time what a person waits for: from the command to the first row, opening a file, whole commands. No other engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

Samples = dict[str, list[float]]
FIRST_ROW = """
import time; began = time.time()
import json, sys; from pathlib import Path; import apr_tui.cli.main, apr_tui.cli.trace; from core import session
from core.trace.request import Prompt, RunOptions, Source
said = {}
def emit(e):
    name = type(e).__name__
    said.setdefault(e.text.split()[0] if name == "Phase" else name, time.time())
    if name == "CellMeasured" and e.place == (0, "output"):
        print(json.dumps(said), flush=True); sys.exit()
session.trace(Source(Path(sys.argv[1]), device="cpu", threads=int(sys.argv[2])), Prompt(),
              RunOptions(witness=False), emit=emit)
"""
OPENING = """
import sys, time; from pathlib import Path; from core import session
start = time.perf_counter()
session.arch_facts(session.open_model(Path(sys.argv[1])))
print(time.perf_counter() - start)
"""


def take_start(model: Path, threads: int, runs: int, big: Path | None) -> Samples:
    """Seconds from starting python to the first layer's whole row, warm and with no kernels yet; and of opening."""
    samples: Samples = {}
    for cold in (False, True):
        for _ in range(1 if cold else runs):
            with tempfile.TemporaryDirectory() as empty:
                env = {**os.environ, **({"XDG_CACHE_HOME": empty} if cold else {})}
                start, command = time.time(), [sys.executable, "-c", FIRST_ROW, str(model), str(threads)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env)
            said = json.loads(done.stdout)
            samples.setdefault(f"first row, {'cold' if cold else 'warm'}", []).append(said["CellMeasured"] - start)
            if cold:
                samples["compiling"] = [said["tracing"] - said["compiling"]]
    for _ in range(runs):
        start = time.time()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        samples.setdefault("import torch alone", []).append(time.time() - start)
    for path in (model, *([big] if big else [])):
        for _ in range(runs):
            done = subprocess.run([sys.executable, "-c", OPENING, str(path)], stdout=subprocess.PIPE, check=True)
            samples.setdefault(f"opening {path.name}", []).append(float(done.stdout))
    return samples


def take_commands(a: Path, b: Path, threads: int, runs: int) -> Samples:
    """Seconds of whole commands on a file, and on it beside another, each into a folder that was not there."""
    asked = {"trace A": ["trace", a, "--out"], "check A": ["check", a, "--out"],
             "compare A B": ["compare", a, b, "--out"], "bisect A B": ["bisect", a, b, "--out"]}
    samples: Samples = {}
    for _ in range(runs):
        for name, words in asked.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "apr_tui", *map(str, words), str(Path(folder) / "out")]
                start = time.time()
                done = subprocess.run([*command, "--threads", str(threads)], capture_output=True)
                samples.setdefault(name, []).append(time.time() - start)
            assert done.returncode in (0, 1), done.stderr.decode()
    return samples
