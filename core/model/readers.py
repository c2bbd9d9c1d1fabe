"""Say where a forward reads a tensor, and a key first: the places that a wrong one can show at. No values."""

from __future__ import annotations

from core.formats.model_file import ModelFile
from core.model.arch import Arch, stage_weights
from core.model.stages import STAGES, Place

# beginning of a key without its architecture -> the place that reads it first; the first that fits
READERS: tuple[tuple[str, Place], ...] = (
    ("embedding_scale", (None, "embedding")),
    ("attention.layer_norm", (0, "attn_norm")),
    ("attention.head_count", (0, "q_rope")),
    ("attention.key_length", (0, "q_rope")),
    ("rope", (0, "q_rope")),
    ("qk_norm", (0, "q_rope")),
    ("attention.clamp_kqv", (0, "qkv")),
    ("attention", (0, "attn_mix")),
    ("residual_scale", (0, "attn_resid")),
    ("logit_scale", (None, "logits")),
    ("final_logit_softcapping", (None, "logits")),
)


def readers(model: ModelFile, arch: Arch, name: str) -> list[Place]:
    """The places that read a tensor of the file, in order of computation; none where no stage does."""
    if name.startswith("rope_"):
        return [(0, "q_rope"), (0, "k_rope")]
    part = name.split(".")
    layer = int(part[1]) if part[0] == "blk" and len(part) > 2 and part[1].isdecimal() else None
    if layer is not None and layer >= arch.n_layer:
        return []
    return [(layer, stage.name) for stage in STAGES
            if stage.whole == (layer is None) and name in stage_weights(model, arch.layer(layer), stage.name)]


def first_reader_of_key(key: str) -> Place | None:
    """The first place that reads a key, named without its architecture; None where this table has no row for it."""
    return next((place for start, place in READERS if key.startswith(start)), None)
