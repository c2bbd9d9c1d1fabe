"""Table of public models: their shapes, and the keys that decide numbers, from the config.json that each is published
with. A file of the same shapes is held beside its row; that it is another model of those shapes, a person decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.formats.model_file import ModelFile

SAME = 1e-4  # relative: eps in a config is decimal, in a file float32


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row. Shapes: layers, width, feed-forward, vocabulary, heads, key-value heads, width of a head.

    base, eps, context: each value that a published model of these shapes has. source: whose config.json.
    """

    name: str
    arch: str
    layers: int
    d_model: int
    d_ff: int
    vocab: tuple[int, ...]
    heads: int
    kv: int
    head: int
    base: tuple[float, ...]
    eps: tuple[float, ...]
    context: tuple[int, ...]
    source: str

    def keys(self) -> dict[str, tuple[float, ...]]:
        """The values of each key that decides numbers."""
        norm = "attention.layer_norm_rms_epsilon"
        return {"attention.head_count": (self.heads,), "attention.head_count_kv": (self.kv,),
                "rope.freq_base": self.base, norm: self.eps}


E5, E6 = (1e-5,), (1e-6,)
LLAMA, SMOL, QWEN2, QWEN3, GEMMA = (32000,), (49152,), (151936, 152064), (151936,), (256000,)
KNOWN = (
    KnownModel("stories260K", "llama", 5, 64, 172, (512,), 8, 4, 8, (1e4,), E5, (512,), "karpathy/tinyllamas"),
    KnownModel("SmolLM2 135M", "llama", 30, 576, 1536, SMOL, 9, 3, 64, (1e5, 1e4), E5, (8192, 2048),
               "HuggingFaceTB/SmolLM2-135M, SmolLM-135M"),
    KnownModel("SmolLM2 360M", "llama", 32, 960, 2560, SMOL, 15, 5, 64, (1e5, 1e4), E5, (8192, 2048),
               "HuggingFaceTB/SmolLM2-360M, SmolLM-360M"),
    KnownModel("SmolLM2 1.7B", "llama", 24, 2048, 8192, SMOL, 32, 32, 64, (1.3e5, 1e4), E5, (8192, 2048),
               "HuggingFaceTB/SmolLM2-1.7B, SmolLM-1.7B"),
    KnownModel("TinyLlama 1.1B", "llama", 22, 2048, 5632, LLAMA, 32, 4, 64, (1e4,), E5, (2048,),
               "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    KnownModel("Llama 2 7B", "llama", 32, 4096, 11008, LLAMA, 32, 32, 128, (1e4,), (1e-5, 1e-6), (4096, 2048),
               "meta-llama/Llama-2-7b-hf"),
    KnownModel("Llama 2 13B", "llama", 40, 5120, 13824, LLAMA, 40, 40, 128, (1e4,), (1e-5, 1e-6), (4096, 2048),
               "meta-llama/Llama-2-13b-hf"),
    KnownModel("Llama 3 8B", "llama", 32, 4096, 14336, (128256,), 32, 8, 128, (5e5,), E5, (8192, 131072),
               "meta-llama/Meta-Llama-3-8B, Llama-3.1-8B"),
    KnownModel("Llama 3 70B", "llama", 80, 8192, 28672, (128256,), 64, 8, 128, (5e5,), E5, (8192, 131072),
               "meta-llama/Meta-Llama-3-70B, Llama-3.1-70B"),
    KnownModel("Llama 3.2 1B", "llama", 16, 2048, 8192, (128256,), 32, 8, 64, (5e5,), E5, (131072,),
               "meta-llama/Llama-3.2-1B"),
    KnownModel("Llama 3.2 3B", "llama", 28, 3072, 8192, (128256,), 24, 8, 128, (5e5,), E5, (131072,),
               "meta-llama/Llama-3.2-3B"),
    KnownModel("Mistral 7B", "llama", 32, 4096, 14336, (32000, 32768), 32, 8, 128, (1e4, 1e6), E5, (32768,),
               "mistralai/Mistral-7B-v0.1, v0.2, v0.3"),
    KnownModel("Qwen2 0.5B", "qwen2", 24, 896, 4864, QWEN2, 14, 2, 64, (1e6,), E6, (131072, 32768),
               "Qwen/Qwen2-0.5B, Qwen2.5-0.5B"),
    KnownModel("Qwen2 1.5B", "qwen2", 28, 1536, 8960, QWEN2, 12, 2, 128, (1e6, 1e4), E6, (131072, 32768, 4096),
               "Qwen/Qwen2-1.5B, Qwen2.5-1.5B, Qwen2.5-Math-1.5B"),
    KnownModel("Qwen2.5 3B", "qwen2", 36, 2048, 11008, QWEN2, 16, 2, 128, (1e6,), E6, (32768,), "Qwen/Qwen2.5-3B"),
    KnownModel("Qwen2 7B", "qwen2", 28, 3584, 18944, QWEN2, 28, 4, 128, (1e6, 1e4, 1e7), E6,
               (131072, 32768, 4096, 1010000), "Qwen/Qwen2-7B, Qwen2.5-7B, Qwen2.5-Math-7B"),
    KnownModel("Qwen2.5 14B", "qwen2", 48, 5120, 13824, QWEN2, 40, 8, 128, (1e6, 1e7), (1e-5, 1e-6),
               (131072, 32768, 1010000), "Qwen/Qwen2.5-14B"),
    KnownModel("Qwen2.5 32B", "qwen2", 64, 5120, 27648, QWEN2, 40, 8, 128, (1e6,), (1e-5, 1e-6), (131072, 32768),
               "Qwen/Qwen2.5-32B"),
    KnownModel("Qwen2 72B", "qwen2", 80, 8192, 29568, QWEN2, 64, 8, 128, (1e6,), (1e-5, 1e-6), (131072, 32768),
               "Qwen/Qwen2-72B, Qwen2.5-72B"),
    KnownModel("Qwen3 0.6B", "qwen3", 28, 1024, 3072, QWEN3, 16, 8, 128, (1e6,), E6, (40960, 32768), "Qwen/Qwen3-0.6B"),
    KnownModel("Qwen3 1.7B", "qwen3", 28, 2048, 6144, QWEN3, 16, 8, 128, (1e6,), E6, (40960, 32768), "Qwen/Qwen3-1.7B"),
    KnownModel("Qwen3 4B", "qwen3", 36, 2560, 9728, QWEN3, 32, 8, 128, (1e6, 5e6), E6, (40960, 262144),
               "Qwen/Qwen3-4B, Qwen3-4B-Instruct-2507"),
    KnownModel("Qwen3 8B", "qwen3", 36, 4096, 12288, QWEN3, 32, 8, 128, (1e6,), E6, (40960, 32768), "Qwen/Qwen3-8B"),
    KnownModel("Qwen3 14B", "qwen3", 40, 5120, 17408, QWEN3, 40, 8, 128, (1e6,), E6, (40960, 32768), "Qwen/Qwen3-14B"),
    KnownModel("Qwen3 32B", "qwen3", 64, 5120, 25600, QWEN3, 64, 8, 128, (1e6,), E6, (40960, 32768), "Qwen/Qwen3-32B"),
    KnownModel("Gemma 2 2B", "gemma2", 26, 2304, 9216, GEMMA, 8, 4, 256, (1e4,), E6, (8192,), "google/gemma-2-2b"),
    KnownModel("Gemma 2 9B", "gemma2", 42, 3584, 14336, GEMMA, 16, 8, 256, (1e4,), E6, (8192,), "google/gemma-2-9b"),
    KnownModel("Gemma 2 27B", "gemma2", 46, 4608, 36864, GEMMA, 32, 16, 128, (1e4,), E6, (8192,), "google/gemma-2-27b"),
    KnownModel("Gemma 3 270M", "gemma3", 18, 640, 2048, (262144,), 4, 1, 256, (1e6,), E6, (32768,),
               "google/gemma-3-270m"),
    KnownModel("Gemma 3 1B", "gemma3", 26, 1152, 6912, (262144, 262145), 4, 1, 256, (1e6,), E6, (32768,),
               "google/gemma-3-1b-pt"),
    KnownModel("Gemma 3 4B", "gemma3", 34, 2560, 10240, (262144, 262145, 262208), 8, 4, 256, (1e6,), E6, (131072,),
               "google/gemma-3-4b-pt"),
    KnownModel("Gemma 3 12B", "gemma3", 48, 3840, 15360, (262144, 262145, 262208), 16, 8, 256, (1e6,), E6, (131072,),
               "google/gemma-3-12b-pt"),
)


def known_model(file: ModelFile) -> KnownModel | None:
    """The row whose architecture and shapes are those of the file's tensors; None where no row fits."""
    weights, arch = file.weights, file.keys.get("general.architecture")
    names = ("token_embd", "blk.0.ffn_up", "blk.0.attn_q", "blk.0.attn_k")
    found = [weights.get(f"{name}.weight") for name in names]
    if any(w is None or len(w.shape) != 2 for w in found):
        return None
    embd, up, q, k = (w.shape for w in found if w is not None)
    for row in KNOWN:
        shapes = (row.arch, row.d_model, row.d_ff, row.heads * row.head, row.kv * row.head)
        if shapes == (arch, embd[1], up[0], q[0], k[0]) and embd[0] in row.vocab and (
                f"blk.{row.layers - 1}.attn_q.weight" in weights and f"blk.{row.layers}.attn_q.weight" not in weights):
            return row
    return None


def unlike_known(file: ModelFile, known: KnownModel) -> Iterator[tuple[str, float, tuple[float, ...]]]:
    """Yield each key that decides numbers and is none of the known model's: its name, its value, the known ones."""
    arch = file.keys.get("general.architecture")
    for key, usual in known.keys().items():
        value = file.keys.get(f"{arch}.{key}")
        if isinstance(value, int | float) and not any(abs(value - u) <= SAME * abs(u) for u in usual):
            yield f"{arch}.{key}", float(value), usual
