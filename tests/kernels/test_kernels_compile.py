"""Every Triton kernel compiles for a GPU that is not here, as it is launched, without spilling registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from core.kernels.gpu.planes import LAYOUTS

pytest.importorskip("triton")
SHARED_BYTES = 227 << 10  # that a block of a Hopper GPU may have; of an A100: 163 KiB


@pytest.mark.parametrize("arguments", [
    ["--tokens", "1,7", "Q4_K"], pytest.param(list(LAYOUTS), marks=pytest.mark.slow)], ids=["some", "all"])
def test_kernels_compile_and_keep_their_values_in_registers(arguments):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compile_kernels", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = {"_split", "tile", "_decode", "_rms_norm", "_rotate", "_attend", "_segment", "_token", "_channels"}
    assert {row["kernel"] for row in rows} - {"one_token", "tile_plain"} == names
    bad = [row for row in rows if row["stack"] or row["shared"] > SHARED_BYTES]
    assert not bad, bad
