"""What a tensor of an original is called in a GGUF file. Common names: gguf-py's table; OWN has what it lacks."""

from __future__ import annotations

import re
from collections.abc import Callable

PREFIXES = ("model.", "backbone.", "transformer.", "gpt_neox.", "model.decoder.")
OTHERS = (  # parts of a model that a text model's file leaves out, and buffers that are no weights
    r"(^|\.)(visual|vision_tower|vision_model|audio_tower|multi_modal_projector|embed_vision|embed_audio)\.",
    r"(^|\.)mtp\.", r"rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$", r"\.attention\.(masked_)?bias$",
    r"rotary_emb\.(cos|sin)_cached$", r"\.mlp\.act_fn\.",  # the last become keys (xielu.*)
)
OWN = (  # the end of a name -> its GGUF name without the layer
    (r"e_score_correction_bias", "exp_probs_b.bias"),
    (r"dt_bias", "ssm_dt.bias"),
    (r"(block_sparse_moe|mlp|feed_forward)\.router\.(layer\.)?weight", "ffn_gate_inp.weight"),
    (r"(block_sparse_moe|mixer|mlp|feed_forward)\.gate\.weight", "ffn_gate_inp.weight"),
    (r"experts\.(w1|gate_proj)(\.weight)?", "ffn_gate_exps.weight"),
    (r"experts\.(w2|down_proj)(\.weight)?|block_sparse_moe\.output_linear\.weight", "ffn_down_exps.weight"),
    (r"experts\.(w3|up_proj)(\.weight)?", "ffn_up_exps.weight"),
    (r"experts\.down_proj_blocks", "ffn_down_exps.weight"),
    (r"experts\.(gate|up|down)_proj_bias", r"ffn_\1_exps.bias"),
    (r"shared_mlp\.output_linear\.weight", "ffn_down.weight"),
    (r"mixer\.(q|k|v)_proj\.weight", r"attn_\1.weight"),
    (r"(q|k)_layernorm\.norms\.weight", r"attn_\1_norm.weight"),
    (r"router\.proj\.weight", "ffn_gate_inp.weight"),
    (r"router\.scale", "ffn_gate_inp.scale"),
    (r"router\.per_expert_scale", "ffn_down_exps.scale"),
)
BARE = ("ssm_a", "ssm_d")  # names that a file writes without .weight
SAME_HEAD = ("lm_head.weight", "embed_out.weight", "output.weight")


def is_left_out(name: str) -> bool:
    """Whether a converter of the text model leaves a tensor out."""
    return any(re.search(pattern, name) for pattern in OTHERS)


def without_expert(name: str) -> tuple[str, int | None]:
    """A name without the number of its expert (or of its head's norm), and that number."""
    found = re.search(r"\.(experts|norms)\.(\d{1,5})(?=\.)", name)
    return (name[:found.start(2) - 1] + name[found.end(2):], int(found[2])) if found else (name, None)


def layer_number(name: str) -> int | None:
    """The layer of an original's tensor: the first number in its name."""
    found = re.search(r"(?:^|\.)(\d{1,5})\.", name)
    return int(found[1]) if found else None


def name_table(arch: str, n_layer: int) -> Callable[[str], str | None]:
    """A function from an original's name (without an expert's number) to the file's; it gives None for unknown ones."""
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    known = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}.get(arch)
    table = get_tensor_name_map(known, n_layer) if known is not None else None

    def find(name: str) -> str | None:
        name = name.replace("model.language_model.", "model.").removeprefix("language_model.")
        own, layer = _own(name), layer_number(name)
        if own is not None and layer is not None:
            return f"blk.{layer}.{own}"
        if table is None:
            return None
        for spelt in _spellings(name):
            found = table.get_name(spelt, try_suffixes=(".weight", ".bias"))
            if found is not None:
                return _with_suffix(str(found))
        return "output.weight" if name in SAME_HEAD else None

    return find


def _own(name: str) -> str | None:
    for pattern, own in OWN:
        found = re.search(rf"(?:^|\.)(?:{pattern})$", name)
        if found:
            return found.expand(own)
    return None


def _spellings(name: str) -> list[str]:
    """A name, and the same under the other roots that models are saved with."""
    bare = next((name[len(p):] for p in PREFIXES if name.startswith(p)), name)
    return [name, *(prefix + bare for prefix in (*PREFIXES, ""))]


def _with_suffix(name: str) -> str:
    is_whole = name.endswith((".weight", ".bias", ".scale")) or name.split(".")[-1] in BARE
    return name if is_whole else f"{name}.weight"
