"""The CUDA path on a pretend GPU: tensors where they belong, no wait where none is meant, a captured graph.

What only a real one shows (kernels as compiled, races, memory, time) is for pytest -m gpu.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.small_models import write_model

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")]
TOKENS = "5,1,4"

RULES = """
import torch
a = torch.tensor([1.0, 2.0], device="cuda:0")
for broken in (lambda: a + torch.ones(2), lambda: a.numpy(), lambda: a.new_tensor(1.0)):
    try:
        broken()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        continue
    raise SystemExit("a card would have refused it")
graph, x, y = torch.cuda.CUDAGraph(), torch.zeros(2, device="cuda:0"), torch.zeros(2, device="cuda:0")
with torch.cuda.graph(graph):
    y.copy_(x * 2)
    try:
        float(x[0])
    except AssertionError:
        pass
    else:
        raise SystemExit("a host's read was captured")
assert y.cpu().tolist() == [0, 0]
x += 3
graph.replay()
assert y.cpu().tolist() == [6, 6]
"""

STEPS = """
from core.train.step import Stepper
from tests.support.pretend_device import COUNTS
take = Stepper.take_step
def counted(self, step, *args, **kwargs):
    before = COUNTS["waits"]
    measured = take(self, step, *args, **kwargs)
    if self.device.type == "cuda":
        print("waits", step, COUNTS["waits"] - before, measured.grads is not None)
    return measured
Stepper.take_step = counted
from apr_tui.cli import main
raise SystemExit(main({words!r}))
"""


def on_card(*words: object) -> tuple[subprocess.CompletedProcess[str], dict[str, int]]:
    command = [sys.executable, "-m", "tests.support.pretend_card", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    return done, json.loads(lines[-1]) if lines else {}


def trace(path: object, *more: object) -> tuple[dict, dict[str, int]]:
    done, counts = on_card("apr-tui", "trace", path, "--device", "cuda", "--tokens", TOKENS, "--json", *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), counts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("card") / "m.gguf", "Q8_0", n_layer=2, n_head=2, n_kv_head=1)


def test_the_card_refuses_what_a_card_refuses():
    done, _ = on_card("-c", RULES)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_a_trace_and_its_captured_continuation_are_those_of_the_cpu(model, compute):
    seen, counts = trace(model, "--compute", compute, "--generate", 5)
    command = [sys.executable, "-m", "apr_tui", "trace", model, "--device", "cpu", "--tokens", TOKENS, "--json",
               "--compute", compute, "--generate", "5"]
    want = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert seen["generated"] == want["generated"] and counts["replays"] == 3
    assert seen["observed_equals_unobserved"] is True
    for a, b in zip(seen["top"], want["top"], strict=True):
        assert a["id"] == b["id"] and a["logit"] == pytest.approx(b["logit"], rel=1e-2 if compute == "bf16" else 1e-5)


def test_no_stage_waits_for_the_card(model, tmp_path):
    deep = write_model(tmp_path / "deep.gguf", "Q8_0", n_layer=4, n_head=2, n_kv_head=1)
    (_, shallow), (_, more) = trace(model, "--no-witness"), trace(deep, "--no-witness")
    assert more["statistics"] - shallow["statistics"] == 2  # one a layer
    assert more["waits"] - shallow["waits"] == 2 * 2        # the two factors of ffn_swigl's peak, beside the forward


def test_the_same_file_on_the_card_and_on_the_cpu_agrees(model):
    done, _ = on_card("apr-tui", "compare", f"{model}@device=cuda", f"{model}@device=cpu", "--tokens", TOKENS)
    assert done.returncode == 0 and "AGREE" in done.stdout, done.stderr[-3000:]
    done, _ = on_card("apr-tui", "check", model, "--device", "cuda", "--tokens", TOKENS)
    assert done.returncode == 0 and "PASS" in done.stdout, done.stderr[-3000:]


def test_training_waits_once_a_step_and_goes_on_after_a_resume(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i}.txt").write_text(" ".join(f"word{j * (i + 3) % 97}" for j in range(3000)))
    words = ["train", "--config", "tiny", "--corpus", str(corpus), "--device", "cuda", "--out", str(tmp_path / "run")]
    for steps, more in ((4, ["--oracle"]), (6, ["--resume"])):
        done, _ = on_card("-c", STEPS.format(words=[*words, "--steps", str(steps), *more]))
        assert done.returncode == 0, done.stderr[-3000:]
        waits = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("waits") and "False" in line]
        assert waits and set(waits) == {"1"}, done.stdout
