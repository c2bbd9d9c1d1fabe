"""Table of the weight types that this build reads: codes and sizes. Decoding is dequantize.py's.

Source of the sizes: gguf-py 0.19, constants.GGML_QUANT_SIZES; of the .apr codes: apr-format v2. A test holds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Quant:
    """One way to store weights.

    block: values that share one block; block_bytes: its size. ggml_id, apr_code: None where that format lacks the type.
    whole: rows have no boundary of their own, blocks run through the tensor. head_bytes: before its first block.
    apr_legacy: a code that old .apr files used for it; never written.
    """

    name: str
    ggml_id: int | None
    block: int
    block_bytes: int
    apr_code: int | None = None
    apr_legacy: int | None = None
    whole: bool = False
    head_bytes: int = 0


_ROWS = (
    # name       ggml block bytes apr
    Quant("F32", 0, 1, 4, 0),
    Quant("F16", 1, 1, 2, 1),
    Quant("BF16", 30, 1, 2, 30),
    Quant("F64", 28, 1, 8, 3),
    Quant("I8", 24, 1, 1, 6),
    Quant("U8", None, 1, 1, 7),
    Quant("I16", 25, 1, 2),
    Quant("I32", 26, 1, 4, 4),
    Quant("I64", 27, 1, 8, 5),
    Quant("Q4_0", 2, 32, 18),
    Quant("Q4_1", 3, 32, 20),
    Quant("Q5_0", 6, 32, 22),
    Quant("Q5_1", 7, 32, 24),
    Quant("Q8_0", 8, 32, 34),
    Quant("Q2_K", 10, 256, 84),
    Quant("Q3_K", 11, 256, 110),
    Quant("Q4_K", 12, 256, 144, 12),
    Quant("Q5_K", 13, 256, 176),
    Quant("Q6_K", 14, 256, 210, 14),
    Quant("IQ2_XXS", 16, 256, 66),
    Quant("IQ2_XS", 17, 256, 74),
    Quant("IQ3_XXS", 18, 256, 98),
    Quant("IQ1_S", 19, 256, 50),
    Quant("IQ4_NL", 20, 32, 18),
    Quant("IQ3_S", 21, 256, 110),
    Quant("IQ2_S", 22, 256, 82),
    Quant("IQ4_XS", 23, 256, 136),
    Quant("IQ1_M", 29, 256, 56),
    Quant("TQ1_0", 34, 256, 54),
    Quant("TQ2_0", 35, 256, 66),
    Quant("MXFP4", 39, 32, 17),
    Quant("NVFP4", 40, 64, 36),
    Quant("APR_Q4", None, 32, 18, 128, apr_legacy=8, whole=True),
    Quant("APR_Q8", None, 1, 1, 129, apr_legacy=9, whole=True, head_bytes=4),
)
QUANTS: dict[str, Quant] = {quant.name: quant for quant in _ROWS}
BY_GGML_ID: dict[int, Quant] = {quant.ggml_id: quant for quant in _ROWS if quant.ggml_id is not None}
BY_APR_CODE: dict[int, Quant] = {
    code: quant for quant in _ROWS for code in (quant.apr_code, quant.apr_legacy) if code is not None
}


def row_bytes(quant: Quant, cols: int) -> int:
    """Size of one row, padded to whole blocks."""
    return -(-cols // quant.block) * quant.block_bytes


def tensor_bytes(quant: Quant, shape: tuple[int, ...]) -> int:
    """Size of a tensor of that shape (rows, cols), unpadded at its end; a scalar () has one value."""
    if quant.whole:
        return quant.head_bytes + row_bytes(quant, prod(shape))
    return prod(shape[:-1]) * row_bytes(quant, shape[-1] if shape else 1)
