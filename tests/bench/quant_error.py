"""Measure the error that a weight type leaves, for core/quant/types.py: python -m tests.bench.quant_error [TYPE ...].

Rows: |decoded - original| / |original| over 2^22 weights, and of the worst of 1024 rows; for normal weights (the
table), and for heavier tails (what ROOM is for). Q4_K and Q6_K by our quantisers, the rest by gguf-py's; Q2_K, Q3_K and
Q5_K, which neither writes, by the values that plain rounding to their scales leaves. IQ, NVFP4 and TQ by llama.cpp's
quantisers with even importances, on 1 row in 16: they search, a second for a hundred rows.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from core.quant.dequantize import decode_rows
from core.quant.quantize import QUANTISERS
from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight

ROWS, COLS = 1024, 4096


def weights(kind: str) -> np.ndarray:
    """Seeded float32 weights of size about 0.02: normal, laplace, student (5 degrees of freedom), normal by channel."""
    rng = np.random.default_rng(0)
    shape = (ROWS, COLS)
    draws = {
        "normal": lambda: rng.standard_normal(shape), "laplace": lambda: rng.laplace(size=shape),
        "student-5": lambda: rng.standard_t(5, shape),
        "channels": lambda: rng.standard_normal(shape) * np.exp(0.7 * rng.standard_normal((1, COLS))),
    }
    return (0.02 * draws[kind]()).astype(np.float32)


# type -> (values of a sub-block, steps of a value, steps of a scale, has a min); Q4_K and Q6_K: to hold against bytes
K_QUANTS = {
    "Q2_K": (16, 3, 15, True), "Q3_K": (16, 3, 31, False), "Q5_K": (32, 31, 63, True),
    "Q4_K": (32, 15, 63, True), "Q6_K": (16, 31, 127, False),
}


def k_rounded(name: str, x: np.ndarray) -> np.ndarray:
    """What plain rounding to a K-quant's scales leaves: d * scale * q - dmin * min."""
    sub, steps, scale_steps, has_min = K_QUANTS[name]
    blocks = x.reshape(-1, 256 // sub, sub)

    def scales(wanted: np.ndarray) -> np.ndarray:
        d = (wanted.max(1, keepdims=True) / scale_steps).astype(np.float16).astype(np.float32)
        return (np.rint(wanted / d) * d)[:, :, None]

    if has_min:
        low = scales(-np.minimum(blocks.min(2), 0))
        step = scales((blocks.max(2).clip(0) - np.minimum(blocks.min(2), 0)) / steps)
        return (np.rint((blocks + low) / step).clip(0, steps) * step - low).reshape(x.shape)
    step = scales(np.abs(blocks).max(2) / steps)
    return (np.rint(blocks / step).clip(-steps - 1, steps) * step).reshape(x.shape)


KINDS = ("normal", "laplace", "student-5", "channels")
SEARCHED = 16  # one row of so many, where a quantiser searches


def by_llama_cpp(name: str, x: np.ndarray) -> np.ndarray | None:
    """Bytes of the rows by llama.cpp's quantiser, every weight as important; None where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    floats, (n_row, n_col), quant = ctypes.POINTER(ctypes.c_float), x.shape, QUANTS[name]
    out, even = np.zeros(tensor_bytes(quant, x.shape), np.uint8), np.ones(n_col, np.float32)
    x = np.ascontiguousarray(x)
    ggml.ggml_quantize_chunk(
        ctypes.c_int(quant.ggml_id or 0), x.ctypes.data_as(floats), out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0), ctypes.c_int64(n_row), ctypes.c_int64(n_col), even.ctypes.data_as(floats))
    return out


def encoded(name: str, x: np.ndarray) -> np.ndarray | None:
    """Bytes of the rows in that type; None where nothing here writes it."""
    import gguf

    if name == "F32":
        return x.view(np.uint8)
    if name in QUANTISERS:
        return QUANTISERS[name](x)
    if name in APR:
        return APR[name](x)
    try:
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)
    except (KeyError, NotImplementedError):
        return None if name in K_QUANTS else by_llama_cpp(name, x)


def apr_q8(x: np.ndarray) -> np.ndarray:
    """One float32 scale of the whole tensor, then int8."""
    scale = np.float32(np.abs(x).max() / 127)
    q = np.rint(x / scale).clip(-127, 127).astype(np.int8)
    return np.concatenate([np.frombuffer(scale.tobytes(), np.uint8), q.view(np.uint8).ravel()])


def apr_q4(x: np.ndarray) -> np.ndarray:
    """A float16 scale of 32 values, then nibbles of q + 8, even values low."""
    blocks = x.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 7).astype(np.float16)
    d = scale.astype(np.float32)[:, None]
    q = (np.rint(np.divide(blocks, d, out=np.zeros_like(blocks), where=d != 0)).clip(-8, 7) + 8).astype(np.uint8)
    return np.concatenate([scale.view(np.uint8).reshape(-1, 2), q[:, 0::2] | q[:, 1::2] << 4], axis=1).ravel()


APR = {"APR_Q8": apr_q8, "APR_Q4": apr_q4}


def errors(name: str, x: np.ndarray) -> tuple[float, float] | None:
    """Relative error of the whole tensor, and of its worst row; None where nothing here writes the type."""
    x = x[::SEARCHED] if name.startswith("IQ") else x
    data = encoded(name, x)
    if data is None and name not in K_QUANTS:
        return None
    decoded = (k_rounded(name, x) if data is None
               else decode_rows(Weight("w", name, x.shape, data.reshape(-1)), 0, len(x)).numpy())
    gap = (decoded.astype(np.float64) - x) ** 2
    size = x.astype(np.float64) ** 2
    return float(np.sqrt(gap.sum() / size.sum())), float(np.sqrt((gap.sum(1) / size.sum(1)).max()))


def table(names: Sequence[str] = ()) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Each type that can be written, and its errors for every kind of weights."""
    for name in names or QUANTS:
        if name in ("I8", "U8", "I16", "I32", "I64"):
            continue
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [errors(name, weights(kind)) for kind in KINDS]
        if all(pair is not None for pair in found):
            yield name, [pair for pair in found if pair is not None]


def main() -> None:
    print(f"{'type':8}", *(f"{kind + ', worst row':>24}" for kind in KINDS))
    for name, found in table(sys.argv[1:]):
        print(f"{name:8}", *(f"{whole:12.2g}, {row:10.2g}" for whole, row in found))


if __name__ == "__main__":
    main()
