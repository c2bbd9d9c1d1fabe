"""The demonstration holds its promises, judged by a forward of its own: numpy, float64, a loop over heads."""

from __future__ import annotations

import numpy as np


def reference_forward(values: dict[str, np.ndarray], ids: list[int], n_head: int = 4, base: float = 1e6) -> dict:
    """Stage values [T, width] in float64, by (layer, stage), of a qwen2 model; its logits under "logits"."""
    n_layer = 1 + max(int(name.split(".")[1]) for name in values if name.startswith("blk."))
    values = {name: value.astype(np.float64) for name, value in values.items()}
    x, out = values["token_embd.weight"][ids], {}
    for layer in range(n_layer):
        w = {n.removeprefix(f"blk.{layer}."): v for n, v in values.items() if n.startswith(f"blk.{layer}.")}
        def put(stage: str, value: np.ndarray, layer: int = layer) -> np.ndarray:
            out[layer, stage] = value
            return value

        h = put("attn_norm", _norm(x, w["attn_norm.weight"]))
        q, k, v = (h @ w[f"attn_{m}.weight"].T + w[f"attn_{m}.bias"] for m in "qkv")
        put("qkv", np.concatenate((q, k, v), 1))
        width = q.shape[1] // n_head
        group = q.shape[1] // k.shape[1]
        heads = []
        for head in range(n_head):
            mine, shared = slice(head * width, (head + 1) * width), slice(head // group * width, (head // group + 1) * width)
            score = _rope(q[:, mine], base) @ _rope(k[:, shared], base).T / np.sqrt(width)
            score = np.where(np.tri(len(ids), dtype=bool), score, -np.inf)
            share = np.exp(score - score.max(1, keepdims=True))
            heads.append(share / share.sum(1, keepdims=True) @ v[:, shared])
        put("attn_mix", np.concatenate(heads, 1))
        x = x + put("attn_out", out[layer, "attn_mix"] @ w["attn_output.weight"].T)
        h = put("ffn_norm", _norm(x, w["ffn_norm.weight"]))
        gate, up = put("ffn_gate", h @ w["ffn_gate.weight"].T), put("ffn_up", h @ w["ffn_up.weight"].T)
        product = put("ffn_swigl", put("ffn_silu", gate / (1 + np.exp(-gate))) * up)
        x = put("output", x + put("ffn_out", product @ w["ffn_down.weight"].T))
    out["logits"] = _norm(x, values["output_norm.weight"])[-1] @ values["output.weight"].T
    return out


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight


def _rope(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[1] // 2
    turn = np.outer(np.arange(len(x)), base ** (-np.arange(half) / half))
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)), 1)
