"""Small real files for tests: GGUFs of a few layers with seeded weights. No golden values here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SCALE_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # f16 scales in a block
TINY_MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2")


def write_tiny_gguf(
    path: Path, arch: str = "qwen2", n_layer: int = 2, d_model: int = 64, n_head: int = 4, n_kv_head: int = 2,
    d_ff: int = 128, n_vocab: int = 128, head_dim: int | None = None, quant: str = "F32", tied: bool = False,
    bias: bool | None = None, tokenizer: str | None = None, seed: int = 0, keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None, quants: dict[str, str] | None = None,
) -> Path:
    """Write a GGUF of that architecture and return its path.

    quant: of every matrix (K types need d_model and d_ff in multiples of 256); quants: by tensor name, over it.
    tokenizer: None, "bpe" (gpt2 model, qwen2 pre-tokenizer) or "spm" (llama); it sets n_vocab.
    keys: more metadata, or other values; None leaves the key out. tensors: other float32 values; None drops one.
    """
    import gguf

    vocab = tiny_vocab(tokenizer)
    n_vocab = len(vocab["tokenizer.ggml.tokens"]) if vocab else n_vocab
    head_dim = head_dim or d_model // n_head
    all_keys = {
        "general.name": f"tiny-{arch}",
        f"{arch}.block_count": n_layer, f"{arch}.context_length": 512, f"{arch}.embedding_length": d_model,
        f"{arch}.feed_forward_length": d_ff,
        f"{arch}.attention.head_count": n_head, f"{arch}.attention.head_count_kv": n_kv_head,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6, f"{arch}.rope.freq_base": 1e6 if arch != "llama" else 1e4,
        f"{arch}.vocab_size": n_vocab, **vocab,
    }
    if head_dim * n_head != d_model or arch == "qwen3":
        all_keys |= {f"{arch}.attention.key_length": head_dim, f"{arch}.attention.value_length": head_dim}
    if arch == "llama":
        all_keys[f"{arch}.rope.dimension_count"] = head_dim
    values = tiny_weights(arch, n_layer, d_model, n_head, n_kv_head, d_ff, n_vocab, head_dim, tied, bias, seed)
    values |= tensors or {}
    writer = gguf.GGUFWriter(path, arch)
    for name, value in (all_keys | (keys or {})).items():
        if value is not None:
            add_key(writer, name, value)
    for name, array in values.items():
        if array is None:
            continue
        kind = (quants or {}).get(name, quant if array.ndim > 1 else "F32")
        if kind == "F32":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, pack(array, kind, seed), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_weights(arch, n_layer, d, n_head, n_kv_head, f, v, hd, tied, bias, seed) -> dict[str, np.ndarray]:
    """Seeded float32 weights by GGUF name, scaled so that activations stay near 1."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, std: float | None = None) -> np.ndarray:
        return (mean + (std or shape[-1] ** -0.5) * rng.standard_normal(shape)).astype(np.float32)

    out = {"token_embd.weight": normal(v, d, std=0.5), "output_norm.weight": normal(d, mean=1, std=0.1)}
    if not tied:
        out["output.weight"] = normal(v, d)
    for layer in range(n_layer):
        p = f"blk.{layer}."
        out |= {
            p + "attn_norm.weight": normal(d, mean=1, std=0.1), p + "attn_q.weight": normal(n_head * hd, d),
            p + "attn_k.weight": normal(n_kv_head * hd, d), p + "attn_v.weight": normal(n_kv_head * hd, d),
        }
        if bias if bias is not None else arch == "qwen2":
            for name, n in (("q", n_head), ("k", n_kv_head), ("v", n_kv_head)):
                out[f"{p}attn_{name}.bias"] = normal(n * hd, std=0.3)
        if arch == "qwen3":
            out |= {f"{p}attn_{name}_norm.weight": normal(hd, mean=1, std=0.1) for name in "qk"}
        out |= {
            p + "attn_output.weight": normal(d, n_head * hd), p + "ffn_norm.weight": normal(d, mean=1, std=0.1),
            p + "ffn_gate.weight": normal(f, d), p + "ffn_up.weight": normal(f, d), p + "ffn_down.weight": normal(d, f),
        }
    return out


def tiny_vocab(tokenizer: str | None) -> dict[str, Any]:
    """Tokenizer metadata: every byte is a token, and a few merges."""
    if tokenizer is None:
        return {}
    if tokenizer == "spm":
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
        pieces += ["▁", *"helowrd", "he", "ll", "hell", "hello", "▁w", "▁wo"]
        return {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [0.0] * 259 + [float(-i) for i in range(len(pieces) - 259)],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259),
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        }
    tokens = [*byte_letters(), *(merge.replace(" ", "") for merge in TINY_MERGES)]
    tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": list(TINY_MERGES), "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3] * 3,
        "tokenizer.ggml.bos_token_id": len(tokens) - 3, "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                                   "{% endfor %}",
    }


def byte_letters() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr({b: b for b in plain}.get(b, 256 + rest.index(b) if b in rest else 0)) for b in range(256)]


def add_key(writer, name: str, value: Any) -> None:
    """Add a metadata value with the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def pack(array: np.ndarray, quant: str, seed: int = 0) -> np.ndarray:
    """Write float32 rows as bytes of that type; K types, which gguf-py cannot write, get random blocks."""
    import gguf

    kind = gguf.GGMLQuantizationType[quant]
    if quant not in SCALE_AT:
        return gguf.quants.quantize(array, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = array.shape
    assert cols % block == 0, f"{quant} needs rows in multiples of {block}, not {cols}"
    rng = np.random.default_rng([seed, rows, cols])
    raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    for i, at in enumerate(SCALE_AT[quant]):
        std = array.std() / {"Q4_K": 190, "Q6_K": 1365}.get(quant, 400)
        scale = np.full((rows, cols // block), std * 7.5 if i else std, np.float16)
        raw[..., at : at + 2] = scale[..., None].view(np.uint8)
    return raw.reshape(rows, -1)
