"""Make the golden numbers of tests/model/test_forward.py with Hugging Face transformers: python -m tests.golden.make.

A golden is small: each stage's std at every scope, and eight signed sums of each token's values, from which a relative
L2 is estimated without bias. It holds the digest of the weights that it was made for. It judges nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.builders import write_tiny_gguf

HERE = Path(__file__).parent
TOKENS = (3, 17, 5, 42, 42, 7, 99)
N_SUM = 8
MIX = {"attn_v.weight": "Q6_K", "ffn_down.weight": "Q6_K"}  # the rest Q4_K, as llama.cpp's Q4_K_M has it

# name -> arguments of write_tiny_gguf
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {
        "arch": "qwen2", "n_layer": 6, "d_model": 256, "n_head": 8, "n_kv_head": 2, "d_ff": 512, "quant": "Q4_K",
        "quants": {f"blk.{i}.{name}": quant for i in range(6) for name, quant in MIX.items()}, "seed": 11,
    },
    "llama": {"arch": "llama", "n_layer": 4, "d_model": 96, "n_head": 6, "n_kv_head": 2, "d_ff": 160, "quant": "Q8_0",
              "seed": 12},
    "qwen3": {"arch": "qwen3", "n_layer": 4, "d_model": 64, "n_head": 4, "n_kv_head": 1, "d_ff": 96, "head_dim": 32,
              "tied": True, "seed": 13},
}


def build(name: str, folder: Path) -> Path:
    """Write that model's GGUF."""
    return write_tiny_gguf(folder / f"{name}.gguf", **MODELS[name])


def weights_digest(path: Path) -> str:
    """SHA-256 of every tensor's name and bytes, in name order."""
    from core.formats.open_model import open_model

    weights = open_model(path).weights
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].data.tobytes())
    return digest.hexdigest()


def signed_sums(x_TW: np.ndarray) -> np.ndarray:
    """Sum each token's values N_SUM times with fixed random signs: [T, N_SUM]; RandomState's stream is frozen."""
    signs = np.random.RandomState(7).randint(0, 2, (x_TW.shape[1], N_SUM)) * 2.0 - 1
    return x_TW.astype(np.float64) @ signs


def stds(x_TW: np.ndarray) -> np.ndarray:
    """Sample std at scopes all, last, first, rest."""
    x = x_TW.astype(np.float64)
    return np.array([x.std(ddof=1), x[-1].std(ddof=1), x[0].std(ddof=1), (x[1:] if len(x) > 1 else x).std(ddof=1)])


def reference(path: Path, arch: str) -> dict[str, np.ndarray]:
    """Run transformers in float32 on the GGUF; every stage as "layer.stage" or "stage", rows in the file's order."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if "head_dim" in MODELS[arch]:
        config.head_dim = MODELS[arch]["head_dim"]  # transformers 5.23 does not read a GGUF's attention.key_length
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    seen: dict[str, Any] = {}
    modules = {"embedding": model.model.embed_tokens, "final_norm": model.model.norm, "logits": model.lm_head}
    for i, layer in enumerate(model.model.layers):
        attention, ffn = layer.self_attn, layer.mlp
        modules |= {
            f"{i}.attn_norm": layer.input_layernorm, f"{i}.q": attention.q_proj, f"{i}.k": attention.k_proj,
            f"{i}.v": attention.v_proj, f"{i}.attn_out": attention.o_proj,
            f"{i}.ffn_norm": layer.post_attention_layernorm, f"{i}.ffn_gate": ffn.gate_proj,
            f"{i}.ffn_up": ffn.up_proj, f"{i}.ffn_silu": ffn.act_fn, f"{i}.ffn_out": ffn.down_proj,
            f"{i}.output": layer,
        }
    inputs = {"attn_out": "attn_mix", "ffn_norm": "attn_resid", "ffn_out": "ffn_swigl"}

    def watch(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            seen[name] = out[0] if isinstance(out, tuple) else out
            before = inputs.get(name.rpartition(".")[2])
            if before:
                seen[name.replace(name.rpartition(".")[2], before)] = args[0]
        return hook

    for name, module in modules.items():
        module.register_forward_hook(watch(name))
    turned = _watch_rope(model)
    with torch.no_grad():
        model(torch.tensor([TOKENS]))
    return _in_file_order(seen, turned, model.config, arch)


def _watch_rope(model: Any) -> list[tuple[Any, Any]]:
    """Keep q and k after RoPE, a pair a layer, through the name that the attention calls."""
    import sys

    module = sys.modules[type(model).__module__]
    plain, kept = module.apply_rotary_pos_emb, []

    def keeping(*args: Any, **more: Any) -> Any:
        kept.append(plain(*args, **more))
        return kept[-1]

    module.apply_rotary_pos_emb = keeping
    return kept


def _in_file_order(
    seen: dict[str, Any], turned: list[tuple[Any, Any]], config: Any, arch: str
) -> dict[str, np.ndarray]:
    """Join q, k and v; for llama, undo the loader's permutation: it splits the pairs (0,1), (2,3) into halves."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    order = np.arange(width).reshape(2, -1).T.ravel() if arch == "llama" else np.arange(width)

    def rows(value: Any) -> np.ndarray:
        heads = value.numpy().reshape(len(TOKENS), -1, width)
        return heads[:, :, order].reshape(len(TOKENS), -1)

    out = {name: value[0].numpy() for name, value in seen.items() if name.rpartition(".")[2] not in "qkv"}
    out["logits"] = out["logits"][-1:]
    for i, (q, k) in enumerate(turned):
        out[f"{i}.qkv"] = np.concatenate([rows(seen[f"{i}.q"]), rows(seen[f"{i}.k"]), seen[f"{i}.v"][0].numpy()], 1)
        out[f"{i}.q_rope"], out[f"{i}.k_rope"] = (rows(t[0].transpose(0, 1)) for t in (q, k))
    return out


def main() -> None:
    """Write a golden for every model."""
    with tempfile.TemporaryDirectory() as folder:
        for name, told in MODELS.items():
            path = build(name, Path(folder))
            values = reference(path, told["arch"])
            names = sorted(values)
            np.savez_compressed(
                HERE / f"{name}.npz", digest=np.array(weights_digest(path)), stages=np.array(names),
                stds=np.array([stds(values[n]) for n in names]),
                sizes=np.concatenate([np.linalg.norm(values[n].astype(np.float64), axis=1) for n in names]),
                sums=np.concatenate([signed_sums(values[n]) for n in names]))
            print(name, len(names), "stages", (HERE / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
