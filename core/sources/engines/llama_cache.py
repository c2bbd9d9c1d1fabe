"""Set the KV cache of a llama.cpp context to the types of a side, and say so. Source: enum ggml_type, llama.h."""

from __future__ import annotations

from typing import Any

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
WITHOUT_BLOCKS = ("f32", "f16")  # values in blocks are read by flash attention only


def set_cache(options: Any, cache: str) -> None:  # noqa: ANN401 (llama_context_params)
    """Set types and flash attention in the context's options; cache: TYPE, or K/V."""
    k, v = cache.split("/")[0], cache.split("/")[-1]
    options.type_k, options.type_v = GGML_TYPES[k], GGML_TYPES[v]
    options.flash_attn_type = int(v not in WITHOUT_BLOCKS)


def cache_words(cache: str) -> str:
    """The same for a person."""
    flash = "no flash attention" if cache.split("/")[-1] in WITHOUT_BLOCKS else "flash attention"
    return f"KV cache {'float32' if cache == 'f32' else cache}, {flash}"
