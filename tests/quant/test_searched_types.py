"""A pair of a searched type (MXFP4, NVFP4, IQ, TQ) gets a verdict: rounding explains it, and no wrong row."""

from __future__ import annotations

import numpy as np
import pytest

from core.proof.weights.weight_diff import WeightDiff, weight_diffs
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import never
from tests.bench.quant_error import encoded

TYPES = ("MXFP4", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
         "TQ1_0", "TQ2_0")
QUICK = ("MXFP4", "NVFP4", "IQ4_XS", "TQ2_0")  # the others search for seconds
CLOSE = 0.05  # of a row's figure: 16,384 weights do not give two digits


def of_type(name: str, x: np.ndarray) -> Weight:
    data = encoded(name, x)
    if data is None:
        pytest.skip(f"nothing here writes {name}")
    return Weight("w", name, x.shape, np.ascontiguousarray(data).view(np.uint8).reshape(-1))


class OneTensor:
    """A file of one tensor, as far as weight_diffs reads it."""

    def __init__(self, weight: Weight) -> None:
        self.weights = {"w": weight}


def pair(a: Weight, b: Weight) -> WeightDiff:
    return weight_diffs(OneTensor(a), OneTensor(b), never)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TYPES])
def test_rounding_explains_a_pair_of_the_type_and_a_wrong_row_is_named(name):
    x = (0.02 * np.random.default_rng(3).standard_normal((16, 1024))).astype(np.float32)
    wrong = x.copy()
    wrong[7] = x[8]
    original = Weight("w", "F32", x.shape, x.view(np.uint8).reshape(-1))
    found = pair(original, of_type(name, x))
    assert found.is_explained and not found.is_unmeasured, found.faults
    error = QUANTS[name].error
    assert error is not None and abs(found.relative / error - 1) < CLOSE, (found.relative, error)
    other = pair(original, of_type(name, wrong))
    assert "row" in other.faults and other.row == 7 and not other.is_explained, other.faults
