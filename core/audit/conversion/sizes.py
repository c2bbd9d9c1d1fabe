"""The sizes of a model that a converter's transforms turn on, from its configuration, else from the file's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.formats.model_file import ModelFile

# size -> names in config.json, then the file's key without its architecture
NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "d_model": (("hidden_size", "n_embd", "d_model"), "embedding_length"),
    "n_head": (("num_attention_heads", "n_head"), "attention.head_count"),
    "n_kv": (("num_key_value_heads", "num_kv_heads"), "attention.head_count_kv"),
    "head_dim": (("head_dim",), "attention.key_length"),
    "nope": (("qk_nope_head_dim",), ""),
    "v_dim": (("v_head_dim",), "attention.value_length_mla"),
    "rank": (("kv_lora_rank",), "attention.kv_lora_rank"),
    "k_heads": (("linear_num_key_heads",), "ssm.group_count"),
    "v_heads": (("linear_num_value_heads",), "ssm.time_step_rank"),
    "k_width": (("linear_key_head_dim",), "ssm.state_size"),
    "v_width": (("linear_value_head_dim",), "ssm.state_size"),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes as numbers; 0 where nobody says one. config: for the multipliers that some families fold into weights."""

    d_model: int = 0
    n_head: int = 0
    n_kv: int = 0
    head_dim: int = 0
    nope: int = 0
    v_dim: int = 0
    rank: int = 0
    k_heads: int = 0
    v_heads: int = 0
    k_width: int = 0
    v_width: int = 0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


def whole(value: object) -> int:
    """A positive whole number, else 0; of an array its largest (heads may differ from layer to layer)."""
    if isinstance(value, list):
        return max((whole(v) for v in value), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else 0


def read_sizes(config: Mapping[str, Any], file: ModelFile, arch: str) -> Sizes:
    """Read every size; the configuration is believed before the file, which is what is audited."""
    found = {}
    for name, (words, key) in NAMES.items():
        said = next((n for word in words if (n := whole(config.get(word)))), 0)
        found[name] = said or (whole(file.key(f"{arch}.{key}")) if key else 0)
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        found["n_kv"] = 1  # falcon 7B
    found["n_kv"] = found["n_kv"] or found["n_head"]
    if not found["head_dim"] and found["n_head"]:
        found["head_dim"] = found["d_model"] // found["n_head"]
    return Sizes(**found, config=config)
