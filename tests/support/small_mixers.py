"""Models of one layer, one for each mixer and what may differ in it: seeded weights, sizes all different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.builders import add_key

D, F, N_VOCAB = 12, 8, 24
EPS = 2.0**-17  # a float32, as the file keeps it


@dataclass(frozen=True, slots=True)
class Case:
    """A model of one layer: its architecture, its keys, the shapes of the mixer's tensors."""

    arch: str
    keys: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    norm: str | None = None  # of the feed-forward; None: it has none


def _ssm(conv: int, inner: int, state: int, rank: int, groups: int) -> dict[str, int]:
    return {"ssm.conv_kernel": conv, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank,
            "ssm.group_count": groups}


_DELTA = {"attn_qkv.weight": (32, D), "attn_gate.weight": (20, D), "ssm_conv1d.weight": (32, 4), "ssm_dt.bias": (4,),
         "ssm_a": (4,), "ssm_norm.weight": (5,), "ssm_out.weight": (D, 20)}
_MAMBA_2 = {"ssm_in.weight": (48, D), "ssm_conv1d.weight": (32, 4), "ssm_conv1d.bias": (32,), "ssm_dt.bias": (4,),
           "ssm_a": (4, 1), "ssm_d": (4, 1), "ssm_out.weight": (D, 12)}
_MAMBA_1 = {"ssm_in.weight": (20, D), "ssm_conv1d.weight": (10, 4), "ssm_conv1d.bias": (10,), "ssm_x.weight": (11, 10),
           "ssm_dt.weight": (10, 3), "ssm_dt.bias": (10,), "ssm_a": (10, 4), "ssm_d": (10,), "ssm_out.weight": (D, 10)}
_LATENT = {"attn_kv_a_mqa.weight": (10, D), "attn_kv_a_norm.weight": (6,), "attn_output.weight": (D, 21)}
_LATENT_KEYS = {"attention.head_count": 3, "attention.head_count_kv": 1, "attention.kv_lora_rank": 6,
               "rope.dimension_count": 4, "attention.key_length_mla": 9, "attention.value_length_mla": 7}
_OLD_KEYS = {name.removesuffix("_mla"): value for name, value in _LATENT_KEYS.items()}
CASES = {
    "delta net": Case("qwen35", _ssm(4, 20, 3, 4, 2),
                      {**_DELTA, "ssm_beta.weight": (4, D), "ssm_alpha.weight": (4, D)}, "post_attention_norm"),
    "delta net, packed": Case("qwen3next", _ssm(4, 20, 3, 4, 2),
                              {**_DELTA, "ssm_ba.weight": (8, D)}, "post_attention_norm"),
    "mamba-2": Case("mamba2", _ssm(4, 12, 5, 4, 2), {**_MAMBA_2, "ssm_norm.weight": (2, 6)}),
    "mamba-2 without a norm": Case("mamba2", _ssm(4, 12, 5, 4, 2), _MAMBA_2),
    "mamba": Case("mamba", _ssm(4, 10, 4, 3, 0), _MAMBA_1),
    "mamba with norms": Case("jamba", _ssm(4, 10, 4, 3, 0), {
        **_MAMBA_1, "ssm_dt_norm.weight": (3,), "ssm_b_norm.weight": (4,), "ssm_c_norm.weight": (4,)}, "ffn_norm"),
    "mamba with norms alone": Case("mamba", {**_ssm(4, 10, 4, 3, 0), "ssm.dt_b_c_rms": True}, _MAMBA_1),
    "short convolution": Case("lfm2", {"shortconv.l_cache": 3}, {
        "shortconv.in_proj.weight": (3 * D, D), "shortconv.conv.weight": (D, 3), "shortconv.out_proj.weight": (D, D)},
        "ffn_norm"),
    "latent attention": Case("deepseek2", {**_LATENT_KEYS, "attention.q_lora_rank": 8}, {
        **_LATENT, "attn_q_a.weight": (8, D), "attn_q_a_norm.weight": (8,), "attn_q_b.weight": (27, 8),
        "attn_k_b.weight": (3, 6, 5), "attn_v_b.weight": (3, 7, 6)}, "ffn_norm"),
    "latent attention, joined": Case("deepseek2", _OLD_KEYS, {
        **_LATENT, "attn_q.weight": (27, D), "attn_kv_b.weight": (36, 6)}, "ffn_norm"),
}


def write_case(path: Path, case: Case) -> dict[str, np.ndarray]:
    """Write the model; returns its layer's weights."""
    import gguf

    rng, writer = np.random.default_rng(1), gguf.GGUFWriter(path, case.arch)
    keys: dict[str, Any] = {"block_count": 1, "context_length": 64, "embedding_length": D, "feed_forward_length": F,
                            "attention.head_count": 2, "attention.layer_norm_rms_epsilon": EPS, **case.keys}
    for name, value in keys.items():
        add_key(writer, f"{case.arch}.{name}", value)
    shapes = {**case.shapes, "attn_norm.weight": (D,)}
    if case.norm is not None:
        shapes |= {f"{case.norm}.weight": (D,), "ffn_gate.weight": (F, D), "ffn_up.weight": (F, D),
                   "ffn_down.weight": (D, F)}
    out_norm = "token_embd_norm" if case.arch == "lfm2" else "output_norm"
    weights = {name: rng.standard_normal(shape) * (2.0 if name == "token_embd.weight" else 0.7)
               for name, shape in {**shapes, "token_embd.weight": (N_VOCAB, D), f"{out_norm}.weight": (D,)}.items()}
    weights = {name: (-np.exp(w) if name == "ssm_a" else w).astype(np.float32) for name, w in weights.items()}
    for name, array in weights.items():
        writer.add_tensor(f"blk.0.{name}" if name in shapes else name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: array.astype(np.float64) for name, array in weights.items()}
