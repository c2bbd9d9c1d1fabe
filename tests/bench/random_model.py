"""Write a Qwen2-shaped GGUF of random weights in the tensor mix of Q4_K_M, without a tokenizer: for measuring speed.

The same few random blocks stand again and again, so that 4.7 GB take seconds; meaning and tokens cannot be had from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPES = {  # d_model, layers, heads, kv heads, d_ff, vocabulary
    "7b": (3584, 28, 28, 4, 18944, 152064),
    "1.5b": (1536, 28, 12, 2, 8960, 151936),
    "tiny": (256, 2, 4, 2, 256, 256),
}
POOL_BLOCKS = 1 << 16  # of random blocks of a type; a tensor starts at a place of its own
BLOCK_BYTES, MEAN_SQUARE = {"Q4_K": 144, "Q6_K": 210}, {"Q4_K": 190.0, "Q6_K": 1365.0}  # of scale x number


def random_pool(rng: np.random.Generator, quant: str) -> np.ndarray:
    """Random blocks [n, bytes] whose values have a standard deviation of about 1."""
    raw = rng.integers(0, 256, (POOL_BLOCKS, BLOCK_BYTES[quant]), dtype=np.uint8)
    d = ((0.5 + rng.random(POOL_BLOCKS)) / MEAN_SQUARE[quant]).astype("<f4")
    if quant == "Q4_K":
        raw[:, 0:2], raw[:, 2:4] = halves(d), halves(7.5 * d)
    else:
        raw[:, 208:210] = halves(d)
    return raw


def halves(values: np.ndarray) -> np.ndarray:
    """As the two bytes of a float16 each."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def scaled(pool: np.ndarray, quant: str, std: float) -> np.ndarray:
    """The pool with another standard deviation of its values."""
    out = pool.copy()
    for at in (0, 2) if quant == "Q4_K" else (208,):
        value = np.ascontiguousarray(pool[:, at:at + 2]).view("<f2")[:, 0].astype("<f4")
        out[:, at:at + 2] = halves(value * std)
    return out


def write_random_model(path: Path, shape: str, seed: int = 0) -> Path:
    """Write the file, whole or not at all."""
    import gguf

    d_model, n_layer, n_head, n_kv, d_ff, n_vocab = SHAPES[shape]
    head, rng = d_model // n_head, np.random.default_rng(seed)
    pools = {quant: random_pool(rng, quant) for quant in BLOCK_BYTES}
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

    def matrix(name: str, rows: int, cols: int, quant: str = "Q4_K", std: float = d_model**-0.5) -> None:
        pool = sized.setdefault((quant, std), scaled(pools[quant], quant, std))
        n_block = rows * cols // 256
        start = int(rng.integers(0, POOL_BLOCKS))
        data = pool[(start + np.arange(n_block)) % POOL_BLOCKS].reshape(rows, -1)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[quant])

    def vector(name: str, n: int, mean: float, std: float) -> None:
        writer.add_tensor(name, (mean + std * rng.standard_normal(n)).astype(np.float32))

    matrix("token_embd.weight", n_vocab, d_model, std=0.02)
    matrix("output.weight", n_vocab, d_model, "Q6_K")
    vector("output_norm.weight", d_model, 1, 0.1)
    for i in range(n_layer):
        more = "Q6_K" if i < n_layer // 8 or i >= 7 * n_layer // 8 or (i - n_layer // 8) % 3 == 2 else "Q4_K"
        blk = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm"):
            vector(f"{blk}{name}.weight", d_model, 1, 0.1)
        for name, rows, quant in (("q", n_head * head, "Q4_K"), ("k", n_kv * head, "Q4_K"), ("v", n_kv * head, more)):
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
