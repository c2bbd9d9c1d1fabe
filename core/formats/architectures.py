"""The architectures that this build runs, a row each: what the name in a file decides, and its names elsewhere.

It lies here, below the text's and the model's code, because .apr's metadata, the tokenizer, the forward and the
engines all read it. No file is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name alone decides; what a key or a tensor's presence says is no column here.

    pairing: which channels of a head RoPE turns together; GGUF keeps the rows of q and k in that order.
    pre: the tokenizer.ggml.pre of older files, which have none. apr: other words of .apr files for it.
    hf: transformers' model_type.
    """

    pairing: str      # adjacent: (0,1), (2,3) ..; halves: (0, H/2), (1, H/2 + 1) ..
    qk_norm: bool = False  # q and k pass an RMS norm of each head before RoPE
    pre: str | None = None
    apr: tuple[str, ...] = ()
    hf: tuple[str, ...] = ()


ARCHS = {
    "llama": Family("adjacent", apr=("mistral", "smollm", "tinyllama"), hf=("llama", "mistral")),
    "qwen2": Family("halves", pre="qwen2", apr=("qwen2.5",), hf=("qwen2",)),
    "qwen3": Family("halves", qk_norm=True, pre="qwen2", hf=("qwen3",)),
}
APR_NAMES = {word: name for name, family in ARCHS.items() for word in family.apr}
HF_FAMILIES = {kind: family for family in ARCHS.values() for kind in family.hf}


def rope_row_order(n_row: int, head_dim: int, pairing: str) -> list[int]:
    """Return the order that turns q's or k's rows (or channels) into the other pairing's: out[i] = rows[order[i]].

    pairing: the one that the rows have now. n_row: a multiple of head_dim, which is even.
    """
    half = head_dim // 2
    if pairing == "halves":
        within = [first + second for first in range(half) for second in (0, half)]
    else:
        within = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return [head + i for head in range(0, n_row, head_dim) for i in within]
