"""The kernels built for arm64 by a cross compiler, run by an emulator: the same values as here. Skips without the two.

Debian: g++-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from core.kernels.cpu import build
from core.kernels.cpu.bindings import KINDS
from core.quant.dequantize import decode_weight
from core.quant.types import FUSED
from tests.support.random_weights import FLOAT32_NMSE, random_weight, random_x

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
GRIDS = ("IQ1", "IQ2", "IQ3")  # their grids are handed over by another call

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"no {COMPILER} or no {EMULATOR}")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("neon") / "neon"
    sources = [build.HERE / "multiply.cpp", Path(__file__).parent / "neon.cpp"]
    subprocess.run([COMPILER, *build.FLAGS, "-pthread", *map(str, sources), "-o", str(made)], check=True, timeout=300)
    return made


@pytest.mark.parametrize("quant", [name for name in FUSED if not name.startswith(GRIDS)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_product_on_arm64_is_float64_s(program: Path, quant: str, tokens: int, tmp_path: Path) -> None:
    rows, cols = 19, 768
    weight, x = random_weight(quant, rows, cols), random_x(tokens, cols)
    (tmp_path / "w").write_bytes(weight.data.tobytes())
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    words = [quant, KINDS.index("f32"), rows, cols, tokens, tmp_path / "w", tmp_path / "x", tmp_path / "out"]
    subprocess.run([EMULATOR, "-L", LIBRARIES, str(program), *map(str, words)], check=True, timeout=60)
    got = torch.from_numpy(np.fromfile(tmp_path / "out", np.float32).reshape(tokens, rows))
    want = x.double() @ decode_weight(weight).double().T
    nmse = float(((got - want) ** 2).sum() / (want**2).sum())
    assert nmse <= FLOAT32_NMSE, f"{quant}: NMSE {nmse:.1e}, at most {FLOAT32_NMSE:.0e}"
