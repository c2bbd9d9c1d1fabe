"""The logits of tiny random files are llama.cpp's, for architectures and features that no reference file has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.model.forward import forward
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Model
from core.trace.taps import no_tap
from tests.support.more_families import MORE, V, write_more

IDS = (3, 17, 5, 42, 42, 7, 90, 1, 8, 11, 60, 33, 2, 77, 51, 19, 88, 4, 29, 71, 15, 66, 9, 38)
ROUNDING = 2e-5  # relative L2 of the logits in float32; worst seen 2e-6
HALF_TABLE = 1e-3  # where llama.cpp's CPU takes GELU from a float16 table; worst seen 4.4e-4
MENDED = ("mistral3, experts", "olmo2, YaRN, windows", "llama4, every layer routed", "exaone-moe, no norm key",
          "afmoe, no norm key", "llama, a log multiplier")


def llama_logits(path) -> np.ndarray:
    llama_cpp = pytest.importorskip("llama_cpp")
    other = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, flash_attn=False,
                            verbose=False, logits_all=True)
    other.eval(list(IDS))
    return np.array(other._scores[-1])


def hold(path, name: str) -> None:
    file = open_model(write_more(path, name))
    arch = read_arch(file)
    model = Model(file, arch, torch.device("cpu"), torch.float32)
    got = run_lockstep([ForwardRun(forward(model, IDS, no_tap, None))])[0][-1].numpy()
    want = llama_logits(path)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    acts = {layer.ffn.act for layer in arch.layers if layer.ffn is not None}
    allowed = HALF_TABLE if acts & {"gelu", "gelu_erf"} else ROUNDING
    assert error < allowed and len(want) == V and not math.isnan(error), f"{name}: {error:.1e}, allowed {allowed:.0e}"


@pytest.mark.parametrize("name", MENDED)
def test_a_rule_that_no_reference_file_holds_is_llama_cpps(name, tmp_path):
    hold(tmp_path / "m.gguf", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MORE if name not in MENDED])
def test_every_other_architecture_gives_llama_cpps_logits(name, tmp_path):
    hold(tmp_path / "m.gguf", name)
