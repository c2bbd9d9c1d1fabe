"""The real Gemma 3 270M, where a file of it is at hand (APR_TUI_GEMMA3=FILE) and transformers is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from core import session
from core.formats.open_model import open_model
from core.trace.request import Prompt, RunOptions, Source

FILE = os.environ.get("APR_TUI_GEMMA3", "")
LIMIT = 1e-4  # of a cell's std: float32 against float32 through 18 layers
PROMPT = Prompt("The capital of France is")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(FILE).is_file(), reason="no file of Gemma 3 270M in APR_TUI_GEMMA3"),
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]


def test_every_stage_is_transformers_within_a_ten_thousandth_of_its_std() -> None:
    ours = session.trace(Source(Path(FILE), threads=1), PROMPT)
    theirs = session.trace(Source(Path(FILE), scheme="transformers", threads=1), PROMPT, RunOptions(witness=False))
    assert set(theirs.cells) >= {p for p in ours.cells if p[1] != "logits"}
    off = {}
    for place, cell in theirs.cells.items():
        for scope in ("all", "last", "first", "rest"):
            a, b = ours.cells[place].at(scope), cell.at(scope)
            if a is not None and b is not None and a.std:
                off[place, scope] = max(abs(getattr(a, k) - getattr(b, k)) for k in ("mean", "std", "absmax")) / a.std
    worst = max(off, key=lambda key: off[key])
    print(f"{len(off)} cells and scopes, worst {off[worst]:.1e} of a std at {worst}")
    assert off[worst] <= LIMIT, worst
    assert [t.id for t in ours.top] == [t.id for t in theirs.top]


def test_a_fault_in_its_bytes_is_named_by_the_weight_and_the_place(tmp_path) -> None:
    bad = tmp_path / "bad.gguf"
    shutil.copy(FILE, bad)
    weight = open_model(bad).weight("blk.7.ffn_up.weight")
    with bad.open("r+b") as file:
        at = bad.read_bytes().find(np.asarray(weight.data[:256]).tobytes())
        file.seek(at + 2)
        file.write(bytes(255 - b for b in np.asarray(weight.data[2:34])))
    result = session.compare(Source(Path(FILE), threads=1), Source(bad, threads=1), PROMPT)
    assert (result.verdict, result.first) == ("H2", (7, "ffn_up")), result.reasons
    assert any("blk.7.ffn_up" in line for line in result.reasons)
