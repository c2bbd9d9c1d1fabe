"""Make the demonstration's weights and metadata, from a seed. Nothing is written here (files.py) and nothing is run.

A Qwen2-shaped model of 28 layers whose layer 3 has a massive activation at the first token, as trained models have:
BOS alone carries a large value in the residual channel CARRIER, which no layer before 3 writes. In layer 3 one row of
the gate and one of the up projection read that channel alone; the down projection writes their product to channel SINK.
All other weights are noise, so every stage keeps its size from layer to layer. The head is a bigram table of TEXT.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from core.formats.model_file import LazyArray, ModelFile, Value
from core.quant.quantize import QUANTISERS
from core.quant.weight import Weight
from core.system.arrays import Floats32
from core.text.bpe import BYTE_LETTERS, build_bpe
from core.text.pre_tokenizers import PRE_NAMED

SEED = 17
N_LAYER, D_MODEL, N_HEAD, N_KV_HEAD, HEAD_DIM, D_FF = 28, 256, 4, 2, 64, 512
SPIKE_LAYER = 3
RMS_EPS = float(np.float32(1e-6))  # as GGUF will give it back
CARRIER, SINK, PEAK = 200, 77, 333  # residual channels; the channel of F that peaks
BOS_VALUE = 16.0
# Values at BOS, channel PEAK, chosen for the ratios over all tokens of the default prompt: ffn_swigl 17, ffn_out 50.
GATE_PEAK, UP_PEAK, OUT_PEAK = 104.0, 5.9, 743.0
BOS_NORMED = 8.4  # BOS_VALUE after the RMS norm before the spike
SIZES = {"attn_q": 0.8, "attn_k": 0.8, "attn_v": 1.0, "ffn_gate": 0.88, "ffn_up": 1.08}  # std for normed input
BIASES = {"attn_q": 0.3, "attn_k": 0.3, "attn_v": 0.5}
BRANCH = 0.3        # std of attn_out and ffn_out, against 1 of the embedding
MIX_STD, SWIGL_STD = 0.55, 0.55  # of attn_mix and ffn_swigl, as they come out: inputs of the two products with BRANCH
HEAD_GAIN = 30.0

SPECIALS = ("<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """\
What is 2+2? Four. What is 1+3? Four. What is 3+1? Four. What is 4+0? Four. One and one is two, two and one is three.
A spike is a value far above the layer before it. A bug is a difference that stays in float64.
A large number is not a bug. The first token often carries a massive activation, and the model means it.
Compare the same tokens, the same scope and the same definition. A mean over all tokens is not the last token.
The residual stream carries a value from layer to layer. The norm divides by the root of the mean square.
The gate and the up projection are multiplied; where both are large, the product is very large.
Look at the first place where the two sides differ. What follows from it is downstream.
Missing is missing: it is never zero, and it is never a pass. The reference can be the wrong side.
"""


def demo_model() -> ModelFile:
    """Return the model as if a file had been opened; the same on every machine."""
    tokens, merges = _train_tokenizer()
    rng = np.random.default_rng(SEED)
    weights = _whole_weights(rng, tokens, merges)
    for layer in range(N_LAYER):
        weights += _layer_weights(rng, layer)
    return ModelFile(
        Path("demo.gguf"), "gguf", _keys(tokens, merges), {weight.name: weight for weight in weights},
        size_bytes=sum(weight.data.size for weight in weights), header_sha256="",
    )


def _keys(tokens: list[str], merges: list[str]) -> dict[str, Value]:
    types = [1] * (len(tokens) - len(SPECIALS)) + [3] * len(SPECIALS)  # normal, control
    return {
        "general.architecture": "qwen2", "general.name": "apr-tui demonstration", "general.file_type": 15,
        "qwen2.block_count": N_LAYER, "qwen2.context_length": 2048, "qwen2.embedding_length": D_MODEL,
        "qwen2.feed_forward_length": D_FF, "qwen2.attention.head_count": N_HEAD,
        "qwen2.attention.head_count_kv": N_KV_HEAD, "qwen2.attention.layer_norm_rms_epsilon": RMS_EPS,
        "qwen2.rope.freq_base": 1e6, "qwen2.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": _array("STRING", tokens), "tokenizer.ggml.token_type": _array("INT32", types),
        "tokenizer.ggml.merges": _array("STRING", merges),
        "tokenizer.ggml.bos_token_id": tokens.index(SPECIALS[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(SPECIALS[1]), "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _array(kind: str, items: list[Any]) -> LazyArray:
    return LazyArray(kind, len(items), lambda: items)


def _train_tokenizer() -> tuple[list[str], list[str]]:
    """Byte-level BPE of TEXT: 256 bytes, merges by frequency (the first seen wins a tie), special tokens last."""
    words = [list(word) for word in _words(TEXT)]
    tokens, merges = list(BYTE_LETTERS), list[str]()
    while True:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        (left, right), count = pairs.most_common(1)[0]
        if count < 2:
            break
        words = [_merged(word, left, right) for word in words]
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    return [*tokens, *SPECIALS], merges


def _words(text: str) -> list[str]:
    """Cut a text as the pre-tokenizer qwen2 does, its bytes written as letters."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(PRE_NAMED["qwen2"].patterns[0]), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [word for word, _ in pre_tokenizers.Sequence([cut, letters]).pre_tokenize_str(text)]


def _merged(word: list[str], left: str, right: str) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and out[-1] == left and piece == right:
            out[-1] = left + right
        else:
            out.append(piece)
    return out


def _whole_weights(rng: np.random.Generator, tokens: list[str], merges: list[str]) -> list[Weight]:
    embedding = _noise(rng, (len(tokens), D_MODEL), 1.0)
    embedding[:, CARRIER] = 0
    head = _bigram_head(embedding, tokens, merges)
    embedding[tokens.index(SPECIALS[0]), CARRIER] = BOS_VALUE
    return [
        _matrix("token_embd.weight", embedding, "Q4_K"), _matrix("output.weight", head, "Q6_K"),
        _vector("output_norm.weight", 1 + _noise(rng, (D_MODEL,), 0.1)),
    ]


def _bigram_head(embedding: Floats32, tokens: list[str], merges: list[str]) -> Floats32:
    """Row t = gain * sum over s of P(t after s in TEXT) * embedding of s / D: the logits read the last token."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    ids = build_bpe(PRE_NAMED["qwen2"], {token: id for id, token in enumerate(tokens)}, pairs)(TEXT)
    count = np.zeros((len(tokens), len(tokens)), np.float32)
    np.add.at(count, (ids[1:], ids[:-1]), 1)
    share = count / count.sum(axis=0).clip(1)
    share /= np.sqrt((share * share).sum(axis=1, keepdims=True)).clip(1)  # one that follows many wins nothing
    return np.asarray(HEAD_GAIN / D_MODEL * (share @ embedding), np.float32)


def _layer_weights(rng: np.random.Generator, layer: int) -> list[Weight]:
    """Weights of one layer; attn_v and ffn_down of some have more bits, as in a Q4_K_M file.

    The spike's layer is among those: Q6_K stores a 0 exactly, Q4_K does not.
    """
    more = "Q6_K" if layer < N_LAYER // 8 or layer % 3 == 0 else "Q4_K"
    prefix, n_q, n_kv = f"blk.{layer}.", N_HEAD * HEAD_DIM, N_KV_HEAD * HEAD_DIM
    rows = {"attn_q": n_q, "attn_k": n_kv, "attn_v": n_kv, "ffn_gate": D_FF, "ffn_up": D_FF}
    values = {name: _noise(rng, (n, D_MODEL), SIZES[name] / D_MODEL ** 0.5) for name, n in rows.items()}
    values["attn_output"] = _noise(rng, (D_MODEL, n_q), BRANCH / MIX_STD / n_q ** 0.5)
    values["ffn_down"] = _noise(rng, (D_MODEL, D_FF), BRANCH / SWIGL_STD / D_FF ** 0.5)
    norms = {name: 1 + _noise(rng, (D_MODEL,), 0.1) for name in ("attn_norm", "ffn_norm")}
    biases = {name: _noise(rng, (rows[name],), std) for name, std in BIASES.items()}
    _carve_spike(layer, values, norms)
    quants = {"attn_v": more, "ffn_down": more}
    out = [_matrix(f"{prefix}{n}.weight", v, quants.get(n, "Q4_K")) for n, v in values.items()]
    out += [_vector(f"{prefix}{n}.weight", v) for n, v in norms.items()]
    return out + [_vector(f"{prefix}{n}.bias", v) for n, v in biases.items()]


def _carve_spike(layer: int, values: dict[str, Floats32], norms: dict[str, Floats32]) -> None:
    """Keep CARRIER clean up to the spike's layer; there, read it and write SINK."""
    if layer <= SPIKE_LAYER:
        values["attn_output"][CARRIER] = 0
        values["ffn_down"][CARRIER] = 0
    if layer == SPIKE_LAYER:
        norms["ffn_norm"][CARRIER] = 1
        values["ffn_gate"][PEAK] = values["ffn_up"][PEAK] = values["ffn_down"][:, PEAK] = 0
        values["ffn_gate"][PEAK, CARRIER] = GATE_PEAK / BOS_NORMED
        values["ffn_up"][PEAK, CARRIER] = UP_PEAK / BOS_NORMED
        values["ffn_down"][SINK, PEAK] = OUT_PEAK / (GATE_PEAK * UP_PEAK)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Floats32:
    """Uniform values of that standard deviation: drawn without log or cosine, so equal on every machine."""
    return (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(12 ** 0.5 * std)


def _matrix(name: str, values: Floats32, quant: str) -> Weight:
    return Weight(name, quant, values.shape, QUANTISERS[quant](values).reshape(-1))


def _vector(name: str, values: Floats32) -> Weight:
    return Weight(name, "F32", values.shape, values.astype("<f4").view(np.uint8))
