"""Decoders equal gguf-py's on random bytes, bit for bit, and one block each worked by hand."""

from __future__ import annotations

import struct
import warnings

import gguf
import numpy as np
import pytest
import torch

from core.quant import dequantize
from core.quant.dequantize import DECODERS, decode_rows, decode_weight, embedding_rows
from core.quant.types import QUANTS, row_bytes, tensor_bytes
from core.quant.weight import Weight
from core.system.errors import FileError

INTEGERS = ("I8", "U8", "I16", "I32", "I64", "F64")
NUMPY = {"I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
BY_GGUF = [name for name, quant in QUANTS.items() if quant.ggml_id is not None and name not in INTEGERS]
ODD_HALVES = (0x7C00, 0xFC00, 0x7E01, 0x0000, 0x8000, 0x0001, 0x7BFF)  # inf, -inf, NaN, 0, -0, least, largest


def random_weight(name: str, rows: int, cols: int, seed: int = 0) -> Weight:
    """Random bytes, and in the first blocks scales that are infinite, NaN, zero, subnormal and largest."""
    quant = QUANTS[name]
    raw = np.random.default_rng(seed).integers(0, 256, tensor_bytes(quant, (rows, cols)), dtype=np.uint8)
    blocks = raw.reshape(-1, quant.block_bytes) if quant.scales_at else []
    for i, (block, half) in enumerate(zip(blocks, ODD_HALVES, strict=False)):
        at = quant.scales_at[i % len(quant.scales_at)]
        block[at:at + 2] = np.frombuffer(struct.pack("<H", half), np.uint8)
    return Weight(name.lower(), name, (rows, cols), raw)


def judge(weight: Weight) -> np.ndarray:
    """What gguf-py makes of it."""
    rows = weight.data.reshape(-1, row_bytes(QUANTS[weight.quant], weight.shape[-1])).copy()
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[weight.quant])
    return np.ascontiguousarray(values[:, :weight.shape[-1]])


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    differ = np.flatnonzero(got[number].view(np.uint32) != want[number].view(np.uint32))
    assert len(differ) == 0, (len(differ), got[number][differ[:3]], want[number][differ[:3]])


@pytest.mark.parametrize("name", BY_GGUF)
def test_random_bytes_decode_as_gguf_py_decodes_them(name):
    weight = random_weight(name, 9, 3 * QUANTS[name].block)
    assert_same_bits(decode_rows(weight, 0, 9).numpy(), judge(weight))


@pytest.mark.parametrize("name", BY_GGUF)
def test_a_single_block_decodes_too(name):
    weight = random_weight(name, 1, QUANTS[name].block, seed=5)
    assert_same_bits(decode_rows(weight, 0, 1).numpy(), judge(weight))


@pytest.mark.parametrize("name", INTEGERS)
def test_plain_types_are_cast_to_float32(name):
    weight = random_weight(name, 4, 10)
    with np.errstate(all="ignore"):
        want = weight.data.view(NUMPY[name]).reshape(4, 10).astype(np.float32)
    assert_same_bits(decode_rows(weight, 0, 4).numpy(), want)


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "APR_Q4", "APR_Q8"])
def test_chunks_and_windows_of_rows_give_the_same_bits_as_the_whole(name, monkeypatch):
    weight = random_weight(name, 11, 512)
    whole = decode_weight(weight).numpy()
    monkeypatch.setattr(dequantize, "CHUNK", 1500)
    assert_same_bits(decode_weight(weight).numpy(), whole)
    assert_same_bits(decode_rows(weight, 4, 9).numpy(), whole[4:9])
    out = torch.full((5, 512), 7.0)
    assert decode_rows(weight, 4, 9, out=out) is out
    assert_same_bits(out.numpy(), whole[4:9])


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_padded_rows_lose_their_padding(name):
    cols = QUANTS[name].block + 20
    weight = random_weight(name, 5, cols)
    assert_same_bits(decode_rows(weight, 1, 4).numpy(), judge(weight)[1:4])


@pytest.mark.parametrize("name", ["F32", "Q4_K", "Q6_K", "IQ4_XS", "APR_Q4", "APR_Q8"])
def test_embedding_rows_are_the_asked_rows_in_the_asked_order(name):
    weight = random_weight(name, 12, 256)
    whole = decode_weight(weight).numpy()
    assert_same_bits(embedding_rows(weight, [7]).numpy(), whole[[7]])
    assert_same_bits(embedding_rows(weight, [7, 0, 11, 7]).numpy(), whole[[7, 0, 11, 7]])


def test_rows_of_apr_q4_may_start_in_the_middle_of_a_block():
    weight = random_weight("APR_Q4", 7, 33)
    d = weight.data.reshape(-1, 18)[:, :2].copy().view("<f2").astype(np.float32)
    byte = weight.data.reshape(-1, 18)[:, 2:].astype(np.int32)
    flat = (np.stack([byte % 16, byte // 16], 2).reshape(-1, 32) - 8) * d  # low nibble first, values side by side
    want = flat.astype(np.float32).reshape(-1)[:7 * 33].reshape(7, 33)
    assert_same_bits(decode_weight(weight).numpy(), want)
    assert_same_bits(decode_rows(weight, 2, 5).numpy(), want[2:5])


def test_apr_q8_has_one_scale_for_the_whole_tensor():
    values = np.array([[-127, 0, 1], [127, 64, -3]], np.int8)
    data = np.frombuffer(struct.pack("<f", 0.5) + values.tobytes(), np.uint8)
    got = decode_weight(Weight("w", "APR_Q8", (2, 3), data))
    assert got.tolist() == [[-63.5, 0.0, 0.5], [63.5, 32.0, -1.5]]


def test_a_vector_and_experts_keep_their_shape():
    vector = np.arange(5, dtype="<f4")
    weight = Weight("norm", "F32", (5,), vector.view(np.uint8))
    assert decode_rows(weight, 0, 5).tolist() == [0, 1, 2, 3, 4]
    assert decode_rows(weight, 1, 3).tolist() == [1, 2]
    assert decode_weight(weight).shape == (5,)
    flat = random_weight("Q4_K", 6, 256)
    experts = decode_weight(Weight("experts", "Q4_K", (2, 3, 256), flat.data))
    assert_same_bits(experts.numpy().reshape(6, 256), judge(flat))


def test_a_read_only_unaligned_map_is_copied_into_aligned_memory(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" + np.arange(64, dtype="<f4").tobytes())
    data = np.memmap(path, np.uint8, "r")[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = decode_rows(Weight("w", "F32", (4, 16), data), 0, 4)
    got[0, 0] = 5  # would raise, or change the file, on the map itself
    assert got[3, 15] == 63 and got.data_ptr() % 64 == 0 and data[:4].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(set(BY_GGUF) - set(DECODERS)))
def test_types_left_to_gguf_py_warn_nobody(name):
    weight = Weight("w", name, (1, QUANTS[name].block), np.full(QUANTS[name].block_bytes, 0x7C, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_rows(weight, 0, 1)


def test_a_type_that_the_installed_gguf_lacks_is_refused_by_name(monkeypatch):
    def lacking(data, kind):
        raise NotImplementedError

    monkeypatch.setattr("gguf.quants.dequantize", lacking)
    with pytest.raises(FileError, match=r"blk\.0\.x is NVFP4"):
        decode_rows(Weight("blk.0.x", "NVFP4", (1, 64), np.zeros(36, np.uint8)), 0, 1)


def test_a_block_of_q8_0_worked_by_hand():
    """value = d * q: 0.25 * 100 = 25, 0.25 * -128 = -32."""
    block = struct.pack("<e32b", 0.25, 100, -128, *[0] * 29, 3)
    got = decode_rows(Weight("w", "Q8_0", (1, 32), np.frombuffer(block, np.uint8)), 0, 1)[0]
    assert (got[0], got[1], got[2], got[31]) == (25.0, -32.0, 0.0, 0.75)


def test_a_block_of_q4_k_worked_by_hand():
    """value = d * scale * q - dmin * min, sub-block 0 in plain 6 bits, sub-block 5 in the packed ones.

    d 0.5, dmin 0.25. Sub-block 0: scale 3, min 5. Sub-block 5: scale 0b10_0110 = 38, min 0b01_1001 = 25:
    their low four bits are byte 9 (6 | 9 << 4), their top two the top two of bytes 1 (10) and 5 (01).
    Sub-block 0 is low nibbles of bytes 16..47, sub-block 5 the high nibbles of bytes 80..111.
    """
    block = bytearray(144)
    block[0:4] = struct.pack("<ee", 0.5, 0.25)
    block[4], block[8] = 3, 5
    block[4 + 1], block[4 + 5] = 0b10_000000, 0b01_000000
    block[4 + 9] = 6 | 9 << 4
    block[16], block[47] = 0x0F, 0x02
    block[80], block[111] = 0xA0, 0x1F
    got = decode_rows(Weight("w", "Q4_K", (1, 256), np.frombuffer(bytes(block), np.uint8)), 0, 1)[0]
    assert got[0] == 0.5 * 3 * 15 - 0.25 * 5
    assert got[31] == 0.5 * 3 * 2 - 0.25 * 5
    assert got[160] == 0.5 * 38 * 10 - 0.25 * 25
    assert got[191] == 0.5 * 38 * 1 - 0.25 * 25
    assert got[32] == 0  # sub-block 1: scale and min are 0


def test_a_block_of_q6_k_worked_by_hand():
    """value = d * scale * (q - 32).

    d 0.5. Value 0: low nibble of ql[0] = 5, bits 0..1 of qh[0] = 3: q = 53. Value 96: high nibble of ql[32] = 9,
    bits 6..7 of qh[0] = 1: q = 25. Value 191 (63 of the second half): low nibble of ql[127] = 0, bits 2..3 of
    qh[63] = 2: q = 32. Value 255: high nibble of ql[127] = 15, bits 6..7 of qh[63] = 3: q = 63.
    """
    block = bytearray(210)
    block[0], block[32], block[127] = 0x05, 0x90, 0xF0
    block[128], block[128 + 63] = 3 | 1 << 6, 2 << 2 | 3 << 6
    block[192:208] = struct.pack("<16b", 2, 0, 0, 0, 0, 0, -4, 0, 0, 0, 0, 7, 0, 0, 0, -128)
    block[208:210] = struct.pack("<e", 0.5)
    got = decode_rows(Weight("w", "Q6_K", (1, 256), np.frombuffer(bytes(block), np.uint8)), 0, 1)[0]
    assert (got[0], got[96], got[191]) == (0.5 * 2 * 21, 0.5 * -4 * -7, 0.0)
    assert got[255] == 0.5 * -128 * 31
    assert got[1] == 0.5 * 2 * -32
