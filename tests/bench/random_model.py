"""Write a Qwen2-shaped GGUF of random weights in a usual mix of types, without a tokenizer: for measuring speed.

python -m tests.bench.random_model FILE [--shape 1.5b] [--mix q4_k_m]
The same few random blocks stand again and again, so that 4.7 GB take seconds; meaning and tokens cannot be had from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from core.quant.dequantize import decode_weight
from core.quant.types import QUANTS
from core.quant.weight import Weight
from tests.support.random_weights import TAME, random_weight

SHAPES = {  # d_model, layers, heads, kv heads, d_ff, vocabulary
    "7b": (3584, 28, 28, 4, 18944, 152064),
    "1.5b": (1536, 28, 12, 2, 8960, 151936),
    "300m": (1024, 16, 16, 4, 4096, 32768),
    "tiny": (256, 2, 4, 2, 256, 256),
}
MIXES = {  # most matrices; values and down projections of some layers, and the head
    "q4_k_m": ("Q4_K", "Q6_K"), "q3_k_m": ("Q3_K", "Q5_K"), "q2_k": ("Q2_K", "Q3_K"), "iq4_xs": ("IQ4_XS", "Q5_K"),
    "mxfp4": ("MXFP4", "Q8_0"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q4_1"), "q5_1": ("Q5_1", "Q5_0"),
}
POOL_BLOCKS = 1 << 16  # of random blocks of a type; a tensor starts at a place of its own
SHOWN_BLOCKS = 1 << 10  # of which the size is measured


def random_pool(quant: str, seed: int = 0) -> np.ndarray:
    """Random blocks [n, bytes] whose values have a root mean square of about 1, of a type with a float16 scale."""
    row = QUANTS[quant]
    pool = random_weight(quant, POOL_BLOCKS, row.block, seed).data.reshape(POOL_BLOCKS, row.block_bytes)
    shown = Weight("shown", quant, (SHOWN_BLOCKS, row.block), pool[:SHOWN_BLOCKS].reshape(-1))
    return scaled(pool, quant, 1 / float(decode_weight(shown).square().mean().sqrt()))


def scaled(pool: np.ndarray, quant: str, factor: float) -> np.ndarray:
    """The pool with its values times a factor; a scale that is a power of two gets the nearest."""
    out = pool.copy()
    if quant in TAME:
        out[:, TAME[quant][0]] = np.clip(out[:, TAME[quant][0]].astype(np.int16) + round(np.log2(factor)), 1, 254)
        return out
    for at in QUANTS[quant].scales_at:
        value = np.ascontiguousarray(pool[:, at:at + 2]).view("<f2")[:, 0].astype("<f4")
        out[:, at:at + 2] = (value * factor).astype("<f2").view(np.uint8).reshape(-1, 2)
    return out


def write_random_model(path: Path, shape: str, seed: int = 0, mix: str = "q4_k_m") -> Path:
    """Write the file, whole or not at all."""
    import gguf

    d_model, n_layer, n_head, n_kv, d_ff, n_vocab = SHAPES[shape]
    head, rng = d_model // n_head, np.random.default_rng(seed)
    most, better = MIXES[mix]
    pools = {quant: random_pool(quant, seed) for quant in {most, better}}
    sized: dict[tuple[str, float], np.ndarray] = {}
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "qwen2")
    writer.add_name(f"random-{shape}")
    writer.add_block_count(n_layer)
    writer.add_context_length(32768)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(d_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_kv)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("none")  # llama.cpp refuses a file that does not say so

    def matrix(name: str, rows: int, cols: int, quant: str = most, std: float = d_model**-0.5) -> None:
        pool = sized.setdefault((quant, std), scaled(pools[quant], quant, std))
        n_block = rows * cols // QUANTS[quant].block
        start = int(rng.integers(0, POOL_BLOCKS))
        data = pool[(start + np.arange(n_block)) % POOL_BLOCKS].reshape(rows, -1)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[quant])

    def vector(name: str, n: int, mean: float, std: float) -> None:
        writer.add_tensor(name, (mean + std * rng.standard_normal(n)).astype(np.float32))

    matrix("token_embd.weight", n_vocab, d_model, std=0.02)
    matrix("output.weight", n_vocab, d_model, better)
    vector("output_norm.weight", d_model, 1, 0.1)
    for i in range(n_layer):
        more = better if i < n_layer // 8 or i >= 7 * n_layer // 8 or (i - n_layer // 8) % 3 == 2 else most
        blk = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm"):
            vector(f"{blk}{name}.weight", d_model, 1, 0.1)
        for name, rows, quant in (("q", n_head * head, most), ("k", n_kv * head, most), ("v", n_kv * head, more)):
            matrix(f"{blk}attn_{name}.weight", rows, d_model, quant)
            vector(f"{blk}attn_{name}.bias", rows, 0, 0.1)
        matrix(blk + "attn_output.weight", d_model, d_model)
        matrix(blk + "ffn_gate.weight", d_ff, d_model)
        matrix(blk + "ffn_up.weight", d_ff, d_model)
        matrix(blk + "ffn_down.weight", d_model, d_ff, more, d_ff**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--mix", choices=MIXES, default="q4_k_m")
    args = parser.parse_args()
    write_random_model(args.file, args.shape, mix=args.mix)


if __name__ == "__main__":
    main()
