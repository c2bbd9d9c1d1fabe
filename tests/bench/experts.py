"""Trace a Qwen3-30B-A3B-shaped file of random weights in Q4_K_M's mix: time, peak memory, and what of the file is read.

usage: python -m tests.bench.experts FILE [--layers N] [--tokens N] [--keep]

The file is written layer by layer (18 GB whole) where it is not there, and removed at the end but for --keep. The same
few random blocks stand again and again. Touched: the bytes of every tensor, of the experts' those that were chosen.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.bench.random_model import POOL_BLOCKS, random_pool, scaled

D, N_LAYER, N_HEAD, N_KV, HEAD, E, USED, F, N_VOCAB = 2048, 48, 32, 4, 128, 128, 8, 768, 151936
MIB = 1 << 20
Tensor = tuple[str, tuple[int, ...], str]  # name, shape, quant


def tensors(n_layer: int) -> Iterator[Tensor]:
    """Every tensor of the file."""
    yield from (("token_embd.weight", (N_VOCAB, D), "Q4_K"), ("output.weight", (N_VOCAB, D), "Q6_K"),
                ("output_norm.weight", (D,), "F32"))
    for i in range(n_layer):
        more = "Q6_K" if i < N_LAYER // 8 or i >= 7 * N_LAYER // 8 or (i - N_LAYER // 8) % 3 == 2 else "Q4_K"
        for name, shape, quant in (
            ("attn_norm", (D,), "F32"), ("attn_q", (N_HEAD * HEAD, D), "Q4_K"), ("attn_k", (N_KV * HEAD, D), "Q4_K"),
            ("attn_v", (N_KV * HEAD, D), more), ("attn_q_norm", (HEAD,), "F32"), ("attn_k_norm", (HEAD,), "F32"),
            ("attn_output", (D, N_HEAD * HEAD), "Q4_K"), ("ffn_norm", (D,), "F32"), ("ffn_gate_inp", (E, D), "F32"),
            ("ffn_gate_exps", (E, F, D), "Q4_K"), ("ffn_up_exps", (E, F, D), "Q4_K"),
            ("ffn_down_exps", (E, D, F), more),
        ):
            yield f"blk.{i}.{name}.weight", shape, quant


def write_experts(path: Path, n_layer: int, seed: int = 0) -> Path:
    """Write the file, a tensor at a time, whole or not at all."""
    import gguf

    rng, part = np.random.default_rng(seed), path.with_suffix(".part")
    pools = {quant: random_pool(quant, seed) for quant in ("Q4_K", "Q6_K")}
    writer = gguf.GGUFWriter(part, "qwen3moe")
    for add, value in ((writer.add_block_count, n_layer), (writer.add_context_length, 32768),
                       (writer.add_embedding_length, D), (writer.add_feed_forward_length, 6144),
                       (writer.add_head_count, N_HEAD), (writer.add_head_count_kv, N_KV),
                       (writer.add_key_length, HEAD), (writer.add_value_length, HEAD), (writer.add_expert_count, E),
                       (writer.add_expert_used_count, USED), (writer.add_expert_feed_forward_length, F),
                       (writer.add_vocab_size, N_VOCAB), (writer.add_tokenizer_model, "none"),
                       (writer.add_rope_freq_base, 1e6), (writer.add_layer_norm_rms_eps, 1e-6)):
        add(value)
    for name, shape, quant in tensors(n_layer):
        kind = gguf.GGMLQuantizationType[quant]
        stored = shape if quant == "F32" else gguf.quant_shape_to_byte_shape(shape, kind)
        dtype = np.dtype(np.float32 if quant == "F32" else np.uint8)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, quant in tensors(n_layer):
        writer.write_tensor_data(_values(rng, pools, shape, quant, "norm" in name))
    writer.close()
    part.rename(path)
    return path


def _values(rng: np.random.Generator, pools: dict[str, np.ndarray], shape: tuple[int, ...], quant: str, is_norm: bool
            ) -> np.ndarray:
    if quant == "F32":
        return (is_norm + rng.standard_normal(shape) * (0.1 if is_norm else shape[-1] ** -0.5)).astype(np.float32)
    pool = scaled(pools[quant], quant, shape[-1] ** -0.5)
    n_block = int(np.prod(shape)) // 256
    return pool[(int(rng.integers(0, POOL_BLOCKS)) + np.arange(n_block)) % POOL_BLOCKS].reshape(*shape[:-1], -1)


def measure(path: Path, n_layer: int, n_token: int) -> None:
    """Trace it once in this process, and print what it took."""
    from core import session
    from core.formats.open_model import open_model
    from core.trace.request import Prompt, RunOptions, Source

    ids = tuple(int(i) for i in np.random.default_rng(1).integers(0, N_VOCAB, n_token))
    ends: list[float] = []

    def told(event: object) -> None:
        if getattr(event, "place", (None, ""))[1] == "output":
            ends.append(time.perf_counter())

    started = time.perf_counter()
    traced = session.trace(Source(path, device="cpu"), Prompt(tokens=ids), RunOptions(witness=False, keep_values=True),
                           emit=told)
    taken = time.perf_counter() - started
    assert traced.values is not None
    weights = open_model(path).weights
    touched = sum(w.data.nbytes for name, w in weights.items() if not name.endswith("_exps.weight"))
    hit = [int((traced.values[i, "moe_weights"] != 0).any(0).sum()) for i in range(n_layer)]
    touched += sum(w.data.nbytes * hit[int(name.split(".")[1])] // E
                   for name, w in weights.items() if name.endswith("_exps.weight"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    between = np.diff(ends)
    print(f"{n_layer} layers, {n_token} tokens: {taken:.2f} s, a layer {np.median(between) * 1e3:.0f} ms; "
          f"experts chosen {sum(hit)} of {n_layer * E}; file {path.stat().st_size / MIB:.0f} MiB, touched "
          f"{touched / MIB:.0f} MiB, peak memory {peak / MIB:.0f} MiB, {(peak - touched) / MIB:+.0f} MiB")


def main() -> int:
    """Write, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=N_LAYER)
    parser.add_argument("--tokens", type=int, default=7)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    if not asked.file.is_file():
        write_experts(asked.file, asked.layers)
    measure(asked.file, asked.layers, asked.tokens)
    if not asked.keep:
        asked.file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
