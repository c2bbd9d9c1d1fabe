"""What an adapter beside an original adds to its weights: scale x B A, as PEFT merges it. It merges nothing itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from core.audit.conversion.original import Original
from core.quant.dequantize import decode_weight
from core.quant.weight import Weight
from core.system.errors import FileError
from core.system.mapped_file import quote_name

ROOT = "base_model.model."
MAX_RANK = 4096


def low_rank_deltas(original: Original) -> Mapping[str, Tensor]:
    """Weight's name in the original -> what the adapter adds to it; empty where there is no adapter.

    FileError where a pair's shapes do not fit the weight that it names.
    """
    config = original.documents.get("adapter_config.json")
    config = config if isinstance(config, dict) else {}
    found = {}
    for name, down in original.adapter.items():
        pair = re.fullmatch(r"(.*)\.lora_A(?:\.\w+)?\.weight", name)
        up = original.adapter.get(name.replace(".lora_A", ".lora_B"))
        if pair is None or up is None:
            continue
        target = pair[1].removeprefix(ROOT) + ".weight"
        base = original.weights.get(target)
        if base is None:
            raise FileError(f"{original.path.name}: the adapter changes {quote_name(target)}, which the weights beside "
                            "it lack. Put the adapter beside the model that it was trained on.")
        found[target] = _delta(down, up, config, base)
    return found


def _delta(down: Weight, up: Weight, config: Mapping[str, object], base: Weight) -> Tensor:
    rank = down.shape[0] if down.shape else 0
    if len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != rank or not 0 < rank <= MAX_RANK:
        raise FileError(f"{quote_name(down.name)} is {list(down.shape)} and its partner {list(up.shape)}: no low-rank "
                        "pair of an adapter.")
    alpha = config.get("lora_alpha", rank)
    alpha = float(alpha) if isinstance(alpha, int | float) else float(rank)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    delta = scale * torch.mm(decode_weight(up), decode_weight(down))
    delta = delta.T if config.get("fan_in_fan_out") else delta
    if tuple(delta.shape) != base.shape:
        raise FileError(f"{quote_name(down.name)}: the adapter's delta is {list(delta.shape)}, the weight "
                        f"{list(base.shape)}. Put the adapter beside the model that it was trained on.")
    return delta
