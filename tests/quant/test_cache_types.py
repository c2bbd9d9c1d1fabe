"""A KV cache's types round as ggml's do, and turn heads as llama.cpp does."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from core.quant.cache_types import CACHE_TYPES, KvTypes, read_kv_types
from core.system.errors import UsageError


@pytest.mark.parametrize("name", [n for n, kind in CACHE_TYPES.items() if kind.blocks])
def test_a_type_rounds_as_ggml_stores_it(name):
    x = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    x[0, :32], x[1, 3], x[2, 5] = 0, 40, -40
    kind = gguf.GGMLQuantizationType[name.upper()]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    assert np.array_equal(CACHE_TYPES[name].rounds(torch.from_numpy(x)).numpy(), theirs)


def test_turning_keeps_products_and_spreads_an_outlier():
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 4, 192), torch.randn(5, 2, 192), torch.randn(5, 2, 128)
    k[:, :, 7] += 30
    exact = KvTypes("f32", "f32")
    assert exact.is_exact and torch.equal(exact.key(k), k) and torch.equal(exact.query(q), q)
    kv = KvTypes("q4_0", "q8_0")
    assert torch.allclose(kv.query(q), q, atol=0.05) and torch.allclose(kv.value(v), v, atol=0.05)
    far = [(rounded - k).square().mean() for rounded in (kv.key(k), CACHE_TYPES["q4_0"].rounds(k))]
    assert far[0] < 0.7 * far[1]
    narrow = torch.randn(5, 2, 32)
    assert torch.equal(kv.key(narrow), CACHE_TYPES["q4_0"].rounds(narrow))


def test_a_cache_is_read_as_one_type_or_two():
    assert read_kv_types("q8_0") == KvTypes("q8_0", "q8_0") and read_kv_types("f16/q4_0") == KvTypes("f16", "q4_0")
    for wrong in ("q8", "q8_0/", "f16/f16/f16", ""):
        with pytest.raises(UsageError, match="is needed"):
            read_kv_types(wrong)
