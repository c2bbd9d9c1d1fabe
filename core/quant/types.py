"""Table of the weight types that this build reads: codes, sizes, scales, what rounding costs, who multiplies.

A type that gguf-py decodes needs its row here and nothing else. One that gguf-py lacks, or that is to be fast without
a compiler, has its own decoder in dequantize.py as well; one that kernels multiply as it is stored also has its layout
in one of kernels/cpu/blocks/*_blocks.h, and in kernels/gpu/planes.py.
Source of the sizes: gguf-py 0.19, constants.GGML_QUANT_SIZES; of the .apr codes: apr-format v2. A test holds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

CPU, GPU = "cpu", "gpu"
BOTH, BY_CPU = (CPU, GPU), (CPU,)


@dataclass(frozen=True, slots=True)
class Quant:
    """One way to store weights.

    block: values that share one block; block_bytes: its size. ggml_id, apr_code: None where that format lacks the type.
    error: |decoded - original| / |original| that plain rounding leaves on weights of a model, None where nobody knows
    it, so that it explains nothing. Measured by `python -m tests.bench.quant_error` on 2^22 normal weights (IQ and TQ:
    2^18); APR_Q8, one scale for a whole tensor, on heavy tails (student-5).
    half_steps: how many times its float16 scale a value can be, so what a scale too small for float16 costs, in 2^-25.
    scales_at: the bytes of a block where its float16 scales and minima stand.
    rounds: the type to which q8 rounds the activations that meet it; Q8_K falls back to Q8_0, F32 is as it is.
    kernels: where compiled kernels multiply by it as it is stored.
    whole: rows have no boundary of their own, blocks run through the tensor. head_bytes: before its first block.
    apr_legacy: a code that old .apr files used for it; never written.
    """

    name: str
    ggml_id: int | None
    block: int
    block_bytes: int
    error: float | None = None
    half_steps: int = 0
    scales_at: tuple[int, ...] = ()
    rounds: str = "Q8_0"
    kernels: tuple[str, ...] = ()
    apr_code: int | None = None
    apr_legacy: int | None = None
    whole: bool = False
    head_bytes: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it stores each value by itself, not quantised."""
        return self.block == 1 and not self.whole


_ROWS = (
    # name       ggml block bytes error half_steps scales_at
    Quant("F32", 0, 1, 4, 0.0, rounds="F32", kernels=BOTH, apr_code=0),
    Quant("F16", 1, 1, 2, 2.1e-4, 1, rounds="F16", kernels=BOTH, apr_code=1),
    Quant("BF16", 30, 1, 2, 1.7e-3, rounds="BF16", kernels=BOTH, apr_code=30),
    Quant("F64", 28, 1, 8, 0.0, apr_code=3),
    Quant("I8", 24, 1, 1, apr_code=6),
    Quant("U8", None, 1, 1, apr_code=7),
    Quant("I16", 25, 1, 2),
    Quant("I32", 26, 1, 4, apr_code=4),
    Quant("I64", 27, 1, 8, apr_code=5),
    Quant("Q4_0", 2, 32, 18, 8.6e-2, 8, (0,), kernels=BOTH),
    Quant("Q4_1", 3, 32, 20, 7.8e-2, 15, (0, 2), kernels=BOTH),
    Quant("Q5_0", 6, 32, 22, 4.3e-2, 16, (0,), kernels=BOTH),
    Quant("Q5_1", 7, 32, 24, 3.8e-2, 31, (0, 2), kernels=BOTH),
    Quant("Q8_0", 8, 32, 34, 5.4e-3, 127, (0,), kernels=BOTH),
    Quant("Q2_K", 10, 256, 84, 0.33, 45, (80, 82), rounds="Q8_K", kernels=BOTH),
    Quant("Q3_K", 11, 256, 110, 0.2, 128, (108,), rounds="Q8_K", kernels=BOTH),
    Quant("Q4_K", 12, 256, 144, 7.8e-2, 945, (0, 2), rounds="Q8_K", kernels=BOTH, apr_code=12),
    Quant("Q5_K", 13, 256, 176, 3.8e-2, 1953, (0, 2), rounds="Q8_K", kernels=BOTH),
    Quant("Q6_K", 14, 256, 210, 1.9e-2, 4096, (208,), rounds="Q8_K", kernels=BOTH, apr_code=14),
    Quant("IQ2_XXS", 16, 256, 66, 0.34, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ2_XS", 17, 256, 74, 0.3, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ3_XXS", 18, 256, 98, 0.18, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ1_S", 19, 256, 50, 0.48, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ4_NL", 20, 32, 18, 7.5e-2, scales_at=(0,), kernels=BOTH),
    Quant("IQ3_S", 21, 256, 110, 0.14, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ2_S", 22, 256, 82, 0.25, scales_at=(0,), rounds="Q8_K", kernels=BY_CPU),
    Quant("IQ4_XS", 23, 256, 136, 7.5e-2, scales_at=(0,), rounds="Q8_K", kernels=BOTH),
    Quant("IQ1_M", 29, 256, 56, 0.45, rounds="Q8_K", kernels=BY_CPU),
    Quant("TQ1_0", 34, 256, 54, 0.81, scales_at=(52,), rounds="Q8_K", kernels=BY_CPU),
    Quant("TQ2_0", 35, 256, 66, 0.81, scales_at=(64,), rounds="Q8_K", kernels=BY_CPU),
    Quant("MXFP4", 39, 32, 17, 0.11, kernels=BOTH),
    Quant("NVFP4", 40, 64, 36, 0.1, kernels=BOTH),
    Quant("APR_Q4", None, 32, 18, 9.7e-2, 8, (0,), apr_code=128, apr_legacy=8, whole=True),
    Quant("APR_Q8", None, 1, 1, 6.7e-2, apr_code=129, apr_legacy=9, whole=True, head_bytes=4),
)
QUANTS: dict[str, Quant] = {quant.name: quant for quant in _ROWS}
BY_GGML_ID: dict[int, Quant] = {quant.ggml_id: quant for quant in _ROWS if quant.ggml_id is not None}
BY_APR_CODE: dict[int, Quant] = {
    code: quant for quant in _ROWS for code in (quant.apr_code, quant.apr_legacy) if code is not None
}
FUSED = tuple(quant.name for quant in _ROWS if CPU in quant.kernels)  # of the compiled kernels of the CPU
UNFUSED = tuple(quant.name for quant in _ROWS if CPU not in quant.kernels)


def row_bytes(quant: Quant, cols: int) -> int:
    """Size of one row, padded to whole blocks."""
    return -(-cols // quant.block) * quant.block_bytes


def tensor_bytes(quant: Quant, shape: tuple[int, ...]) -> int:
    """Size of a tensor of that shape (rows, cols), unpadded at its end; a scalar () has one value."""
    if quant.whole:
        return quant.head_bytes + row_bytes(quant, prod(shape))
    return prod(shape[:-1]) * row_bytes(quant, shape[-1] if shape else 1)
