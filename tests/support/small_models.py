"""Small models for tests of the forward and of comparisons: one set of weights as several types. No golden values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.quant.quantize import QUANTISERS
from tests.support.builders import add_key, tiny_vocab, tiny_weights

IDS = (3, 17, 5, 42, 42, 7, 99)
Change = Callable[[np.ndarray], np.ndarray | None]


def quantised(array: np.ndarray, quant: str) -> np.ndarray:
    """Bytes of float32 rows in that type: Q4_K and Q6_K by our quantisers, the rest by gguf-py's."""
    import gguf

    if quant in QUANTISERS:
        return QUANTISERS[quant](array)
    return gguf.quants.quantize(array, gguf.GGMLQuantizationType[quant])


def write_model(
    path: Path, quant: str = "F32", *, arch: str = "qwen2", n_layer: int = 3, d_model: int = 64, n_head: int = 4,
    n_kv_head: int = 2, d_ff: int = 128, n_vocab: int = 128, head_dim: int | None = None, tied: bool = False,
    bias: bool | None = None, seed: int = 0, tokenizer: str | None = None, keys: Mapping[str, Any] | None = None,
    quants: Mapping[str, str] | None = None, changes: Mapping[str, Change] | None = None,
) -> Path:
    """Write a seeded model whose matrices are of one type; the same seed is the same weights whatever the type.

    quants: another type by tensor name. changes: what a tensor becomes before it is written; None drops it, or a key.
    """
    import gguf

    vocab = tiny_vocab(tokenizer)
    n_vocab = len(vocab["tokenizer.ggml.tokens"]) if vocab else n_vocab
    hd = head_dim or d_model // n_head
    all_keys: dict[str, Any] = {
        "general.name": "small", f"{arch}.block_count": n_layer, f"{arch}.context_length": 512,
        f"{arch}.embedding_length": d_model, f"{arch}.feed_forward_length": d_ff,
        f"{arch}.attention.head_count": n_head, f"{arch}.attention.head_count_kv": n_kv_head,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.freq_base": 1e4, f"{arch}.vocab_size": n_vocab, f"{arch}.attention.key_length": hd,
        f"{arch}.attention.value_length": hd, f"{arch}.rope.dimension_count": hd, **vocab, **(keys or {}),
    }
    writer = gguf.GGUFWriter(path, arch)
    for name, value in all_keys.items():
        if value is not None:
            add_key(writer, name, value)
    weights = tiny_weights(arch, n_layer, d_model, n_head, n_kv_head, d_ff, n_vocab, hd, tied, bias, seed)
    for name, array in weights.items():
        array = (changes or {}).get(name, lambda x: x)(array)
        if array is None:
            continue
        kind = (quants or {}).get(name, quant if array.ndim > 1 else "F32")
        if kind == "F32":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantised(array, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
