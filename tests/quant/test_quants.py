"""The table of weight types holds against gguf-py, and our quantisers against their own bound."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from core.quant.dequantize import decode_weight
from core.quant.quantize import QUANTISERS, quantise_q4_k, quantise_q6_k
from core.quant.types import BY_APR_CODE, BY_GGML_ID, QUANTS, row_bytes, tensor_bytes
from core.quant.weight import Weight

APR_CODES = {
    "F32": 0, "F16": 1, "F64": 3, "I32": 4, "I64": 5, "I8": 6, "U8": 7, "Q4_K": 12, "Q6_K": 14, "BF16": 30,
    "APR_Q4": 128, "APR_Q8": 129,
}
Q4_K_ERROR = 0.09  # relative L2 on normal weights; measured 0.078
Q6_K_ERROR = 0.022  # measured 0.0193


@pytest.mark.parametrize("name", [name for name, quant in QUANTS.items() if quant.ggml_id is not None])
def test_a_row_of_the_table_equals_gguf_py(name):
    quant = QUANTS[name]
    kind = gguf.GGMLQuantizationType[name]
    assert (quant.ggml_id, quant.block, quant.block_bytes) == (int(kind), *gguf.GGML_QUANT_SIZES[kind])
    assert BY_GGML_ID[int(kind)] is quant


@pytest.mark.parametrize("name", [name for name, quant in QUANTS.items() if quant.scales_at])
def test_a_scale_that_is_nan_leaves_no_number_in_its_block(name):
    quant = QUANTS[name]
    for at in quant.scales_at:
        raw = np.random.default_rng(1).integers(0, 60, 2 * quant.block_bytes, dtype=np.uint8)
        raw[at:at + 2] = np.array([0x7E01], "<u2").view(np.uint8)
        values = decode_weight(Weight("w", name, (2, quant.block), raw))
        assert values[0].isnan().all() and values[1].isfinite().all(), f"{name}, byte {at}"


def test_every_type_that_gguf_py_decodes_is_in_the_table():
    decoded = {kind.name for kind in gguf.quants._type_traits} | {"F32", "F16"}
    assert decoded <= set(QUANTS), decoded - set(QUANTS)


def test_apr_codes_are_those_of_the_format_and_its_two_legacy_ones_are_read_only():
    assert {quant.name: quant.apr_code for quant in QUANTS.values() if quant.apr_code is not None} == APR_CODES
    assert (BY_APR_CODE[8].name, BY_APR_CODE[9].name) == ("APR_Q4", "APR_Q8")
    assert len(BY_APR_CODE) == len(APR_CODES) + 2


def test_sizes_pad_each_row_and_whole_tensor_types_do_not():
    assert row_bytes(QUANTS["Q4_K"], 256) == 144
    assert row_bytes(QUANTS["Q4_K"], 257) == 288
    assert tensor_bytes(QUANTS["Q6_K"], (3, 300)) == 3 * 2 * 210
    assert tensor_bytes(QUANTS["F32"], (7,)) == 28
    assert tensor_bytes(QUANTS["F16"], ()) == 2
    assert tensor_bytes(QUANTS["APR_Q4"], (3, 33)) == 4 * 18  # 99 values in four blocks of 32
    assert tensor_bytes(QUANTS["APR_Q8"], (3, 33)) == 4 + 99
    assert tensor_bytes(QUANTS["Q8_0"], (2, 3, 64)) == 6 * 68


def decode(name: str, raw: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])


def steps(name: str, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step d * scale of each value, and d * 1 of each block, read from the bytes a second way."""
    blocks = raw.reshape(-1, QUANTS[name].block_bytes)
    at = {"Q4_K": 0, "Q6_K": 208}[name]
    d = blocks[:, at:at + 2].copy().view(np.float16).astype(np.float64)
    if name == "Q6_K":
        return np.repeat(d * blocks[:, 192:208].view(np.int8), 16, 1), d
    s = blocks[:, 4:16].astype(int)
    scale = np.stack([s[:, i] % 64 if i < 4 else s[:, i + 4] % 16 + s[:, i - 4] // 64 * 16 for i in range(8)], 1)
    return np.repeat(d * scale, 32, 1), d


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_a_quantised_value_is_off_by_half_a_step_and_the_rounding_of_its_scales(name):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 512)) * 10.0 ** rng.integers(-2, 3, (6, 1))).astype(np.float32)
    raw = QUANTISERS[name](x)
    error = np.abs(decode(name, raw) - x).reshape(-1, 256)
    step, d = steps(name, raw)
    if name == "Q4_K":
        dmin = raw.reshape(-1, 144)[:, 2:4].copy().view(np.float16).astype(np.float64)
        # half a step; a scale rounded down by half of d leaves 15 levels short; so does the min, by half of dmin;
        # and a float16 d or dmin rounded down makes the largest of 63 levels fall short by 63 / 2048
        bound = step / 2 + 15 * d * (0.5 + 63 / 2048) + dmin * (0.5 + 63 / 2048)
    else:
        bound = step / 2 + 31 * d * (0.5 + 127 / 2048)
    assert (error <= bound * (1 + 1e-5)).all(), (error / bound).max()


@pytest.mark.parametrize(("name", "limit"), [("Q4_K", Q4_K_ERROR), ("Q6_K", Q6_K_ERROR)])
def test_quantised_normal_weights_stay_within_the_measured_relative_error(name, limit):
    x = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    error = np.linalg.norm(decode(name, QUANTISERS[name](x)) - x) / np.linalg.norm(x)
    assert error < limit


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_rows_are_padded_with_zeros_to_whole_blocks(name):
    x = np.random.default_rng(3).standard_normal((3, 300)).astype(np.float32)
    raw = QUANTISERS[name](x)
    assert raw.shape == (3, row_bytes(QUANTS[name], 300))
    padded = np.pad(x, ((0, 0), (0, 212)))
    assert np.array_equal(raw, QUANTISERS[name](padded))


def test_zeros_stay_zero_and_a_single_large_value_keeps_its_size():
    x = np.zeros((2, 256), np.float32)
    x[1, 200] = 12.5
    for name, quantise in (("Q4_K", quantise_q4_k), ("Q6_K", quantise_q6_k)):
        back = decode(name, quantise(x))
        assert not back[0].any() and np.flatnonzero(back[1]).tolist() == [200]
        assert back[1, 200] == pytest.approx(12.5, rel=2**-11)  # d is a float16
