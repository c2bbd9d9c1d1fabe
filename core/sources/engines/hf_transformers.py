"""Run Hugging Face transformers on a GGUF file or a safetensors folder and take every stage by forward hooks.

It runs in the child process of process.py. float32, no network, no code from the folder, weights from safetensors only.
Shape letters: T tokens, N heads, H head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.formats.architectures import HF_FAMILIES, rope_row_order
from core.model.stages import STAGES, Place, Stage, stage_named
from core.sources.engines.process import Answer, Ask, stages_wanted, tell
from core.system.errors import FileError

WATCHED = "apr_tui_watched"  # the attention that also keeps the turned q and k


def capture(ask: Ask, folder: Path) -> tuple[Answer, dict[Place, Tensor]]:
    """Run the model watched and, for the witness, unwatched."""
    import transformers

    if ask.threads:
        torch.set_num_threads(ask.threads)
    tell(folder, "loading the model")
    model = _load(Path(ask.path), ask.device)
    kind = model.config.model_type
    if kind not in HF_FAMILIES:
        raise FileError(f"the model is of transformers' type {kind!r}; stages are known for {', '.join(HF_FAMILIES)}.")
    ids = torch.tensor([ask.tokens], device=ask.device)
    values: dict[Place, Tensor] = {}
    _watch_attention(values, model.config, ask)
    n_layer = model.config.num_hidden_layers
    hooks = _hook(model, values, ask, lambda layer: tell(folder, f"layer {layer + 1} of {n_layer}"))
    logits = _logits(model, ids, WATCHED)
    for hook in hooks:
        hook.remove()
    tell(folder, "running unwatched")
    unwatched = _logits(model, ids, "eager") if ask.witness else None
    values[None, "logits"] = logits
    _join_qkv(values, model.config, _is_turned(kind))
    answer = Answer(
        engine=f"transformers {transformers.__version__}", compute="f32", dtype="float32", arch=kind,
        n_layer=n_layer, d_model=model.config.hidden_size, n_vocab=logits.shape[1],
        tokens=ask.tokens, threads=torch.get_num_threads(), device=ask.device,
        kernel=f"torch {torch.__version__}, eager attention",
        same_logits=None if unwatched is None else torch.equal(logits.view(torch.int32), unwatched.view(torch.int32)))
    return answer, {place: value.float().cpu().contiguous() for place, value in values.items()}


def _load(path: Path, device: str) -> Any:  # noqa: ANN401 (transformers is not typed)
    from transformers import AutoModelForCausalLM

    where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {"use_safetensors": True}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent if path.is_file() else path), dtype=torch.float32, attn_implementation="eager",
        local_files_only=True, trust_remote_code=False, **where)
    return model.to(device).eval()


def _logits(model: Any, ids: Tensor, attention: str) -> Tensor:  # noqa: ANN401
    """Run the tokens; returns the logits [1, V] of the last one."""
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        out: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0]
    return out.float().cpu().contiguous()


def _watch_attention(values: dict[Place, Tensor], config: Any, ask: Ask) -> None:  # noqa: ANN401
    """Register an attention that keeps q and k after RoPE and goes on as the model's own eager one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    turned = _is_turned(config.model_type)

    def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:  # noqa: ANN401
        layer = module.layer_idx
        if stages_wanted(ask, layer) is None:
            for stage, x_1NTH in (("q_rope", query), ("k_rope", key)):
                x_TW = x_1NTH[0].transpose(0, 1).flatten(1)
                values[layer, stage] = _file_order(x_TW, x_1NTH.shape[-1]) if turned else x_TW.clone()
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **rest)

    AttentionInterface.register(WATCHED, watched)
    AttentionMaskInterface.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _hook(model: Any, values: dict[Place, Tensor], ask: Ask, began: Callable[[int], None]) -> list[Any]:  # noqa: ANN401
    """Hook every stage; returns the handles."""
    def keep(place: Place) -> Callable[..., None]:
        def hook(module: object, args: tuple[Tensor, ...], out: Any = None) -> None:  # noqa: ANN401
            value = args[0] if out is None else out[0] if isinstance(out, tuple) else out
            values[place] = value.reshape(-1, value.shape[-1]).clone()
        return hook

    handles: list[Any] = []

    def watch(base: Any, layer: int | None, stage: Stage) -> None:  # noqa: ANN401
        for path in stage.hf_output:
            place = (layer, stage.name if len(stage.hf_output) == 1 else path)
            handles.append(base.get_submodule(path).register_forward_hook(keep(place)))
        if stage.hf_input is not None:
            handles.append(base.get_submodule(stage.hf_input).register_forward_pre_hook(keep((layer, stage.name))))

    for stage in STAGES:
        if stage.whole:
            watch(model.model, None, stage)
    for i, layer in enumerate(model.model.layers):
        wanted = stages_wanted(ask, i)
        handles.append(layer.register_forward_pre_hook(lambda module, args, i=i: began(i)))
        for stage in STAGES:
            if not stage.whole and (wanted is None or stage.name in wanted):
                watch(layer, i, stage)
    return handles


def _join_qkv(values: dict[Place, Tensor], config: Any, turned: bool) -> None:  # noqa: ANN401
    """Join q, k and v of each layer into qkv, in the file's row order."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    paths = stage_named("qkv").hf_output
    for layer in range(config.num_hidden_layers):
        if (layer, paths[0]) in values:
            q, k, v = (values.pop((layer, path)) for path in paths)
            if turned:
                q, k = (_file_order(x, width) for x in (q, k))
            values[layer, "qkv"] = torch.cat((q, k, v), -1)


def _file_order(x_TW: Tensor, head_dim: int) -> Tensor:
    """Put channels of q or k from transformers' order (halves) into that of a GGUF whose pairs are adjacent."""
    return x_TW[:, rope_row_order(x_TW.shape[1], head_dim, "halves")]


def _is_turned(kind: str) -> bool:
    """Whether a GGUF file of transformers' model_type keeps the rows of q and k in another order."""
    return kind in HF_FAMILIES and HF_FAMILIES[kind].pairing == "adjacent"
