"""Run Hugging Face transformers on a GGUF file or a safetensors folder and take every stage by forward hooks.

It runs in the child process of process.py. float32, no network, no code from the folder, weights from safetensors only.
A stage is known by the tensor that GGUF makes of its module's weight (gguf-py has the names), as in by_weight.py.
Shape letters: T tokens, N heads, H head width, K chosen experts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.formats.architectures import HF_FAMILIES, rope_row_order
from core.formats.open_model import open_model
from core.model.arch import Arch, read_arch
from core.model.layers import DELTA_NET
from core.model.stages import ROUTED, Place
from core.sources.engines.by_weight import StagesByTensor, dense_weights, join, stages_by_tensor, usual_stages
from core.sources.engines.process import Answer, Ask, stages_wanted, tell
from core.system.arrays import Floats32
from core.system.errors import FileError

WATCHED = "apr_tui_watched"  # the attention that also keeps the turned q and k
LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)")
# architectures whose GGUF has q's and k's rows in another order than transformers, and those whose q, k, v it regroups
PERMUTED = ("llama", "mistral3", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee", "minicpm")
REGROUPED = ("bloom", "gptneox", "falcon")
ACTIVATIONS = ("mlp.act_fn", "feed_forward.act_fn")


def capture(ask: Ask, folder: Path) -> tuple[Answer, dict[Place, Any]]:
    """Run the model watched and, for the witness, unwatched."""
    import transformers

    if ask.threads:
        torch.set_num_threads(ask.threads)
    tell(folder, "loading the model")
    model = _load(Path(ask.path), ask.device)
    watcher = Watcher(ask, folder, model)
    ids = torch.tensor([ask.tokens], device=ask.device)
    logits = _logits(model, ids, watcher.attention)
    watcher.remove()
    tell(folder, "running unwatched")
    unwatched = _logits(model, ids, "eager") if ask.witness else None
    values: dict[Place, Any] = {**watcher.values(), (None, "logits"): logits}
    answer = Answer(
        engine=f"transformers {transformers.__version__}", compute="f32", dtype="float32", arch=watcher.kind,
        n_layer=watcher.n_layer, d_model=model.config.hidden_size, n_vocab=logits.shape[1],
        tokens=ask.tokens, threads=torch.get_num_threads(), device=ask.device,
        kernel=f"torch {torch.__version__}, eager attention",
        same_logits=None if unwatched is None else torch.equal(logits.view(torch.int32), unwatched.view(torch.int32)))
    return answer, values


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


@dataclass(slots=True)
class Watcher:
    """Hooks on every module that makes or reads a stage, and what they have seen."""

    ask: Ask
    folder: Path
    model: Any
    kind: str = ""       # of the architecture, as transformers calls it
    arch: Arch | None = None  # None: of a folder that no GGUF stands beside; a usual decoder
    by: StagesByTensor = field(default_factory=lambda: StagesByTensor({}, {}, {}))
    attention: str = "eager"
    _name: str = ""
    _made: dict[str, Floats32] = field(default_factory=dict)
    _shown: dict[Place, Floats32] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the layers of the GGUF, and hook the modules."""
        self.kind = self.model.config.model_type
        own = Path(self.ask.path).is_file()
        path = self.ask.path if own else self.ask.layers_of or ""
        if Path(path).is_file():
            file = open_model(Path(path))
            self.arch, self._name = read_arch(file), str(file.key("general.architecture"))
            self.by = stages_by_tensor(self.arch, frozenset(file.weights))
        elif self.kind in HF_FAMILIES:
            self._name = "llama" if HF_FAMILIES[self.kind].pairing == "adjacent" else "qwen3"
            self.by = usual_stages(self.n_layer)
        else:
            raise FileError(f"the folder's model is of transformers' type {self.kind!r}; its stages are told by a GGUF "
                            f"of it beside it (compare), or known for {', '.join(HF_FAMILIES)}.")
        self._watch_attention()
        for name, module in self.model.named_modules():
            self._hook(name, module)

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return int(self.model.config.num_hidden_layers)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def values(self) -> dict[Place, Floats32]:
        """Every stage that was seen."""
        shown = {p: v for p, v in self._shown.items() if self._width(p) in (None, v.shape[1])}
        found = shown | join(self.by, self._width, self._made)
        return {p: np.ascontiguousarray(v) for p, v in found.items() if self._is_shown(p)}

    def _width(self, place: Place) -> int | None:
        """Channels of a place; None where that is not known."""
        return None if self.arch is None else self.arch.width(*place)

    def _is_shown(self, place: Place) -> bool:
        """Whether a place is wanted, and has its channels in the order of the GGUF."""
        stages = stages_wanted(self.ask, place[0])
        if stages is not None and place[1] not in stages:
            return False
        if self.arch is None or place[0] is None:
            return True
        layer = self.arch.layers[place[0]]
        if place[1] in ("q_rope", "k_rope") and layer.attention is not None and layer.attention.mla is not None:
            return False  # turned halves, in an order of its own
        regrouped = place[1] == "qkv" and self._name in REGROUPED
        return not regrouped and not (place[1] in ("ssm_in", "ssm_mix") and DELTA_NET in layer.mixers)

    def _hook(self, name: str, module: Any) -> None:  # noqa: ANN401
        whole = LAYER.fullmatch(name)
        if whole:
            self._hook_layer(int(whole[1]), module)
            return
        inside = LAYER.match(name)
        rest = name[inside.end() + 1 :] if inside else ""
        if inside and rest in ACTIVATIONS:
            self._keep_output(module, (int(inside[1]), "ffn_silu"))
        if inside and rest.endswith(".experts"):
            self._keep_output(module, (int(inside[1]), "moe_out"))
        if not hasattr(module, "weight"):
            return
        tensor = tensor_names(self._name, self.n_layer)(name)
        if tensor is not None and tensor in self.by.places:
            self._handles.append(module.register_forward_hook(self._on_module(tensor)))

    def _hook_layer(self, layer: int, module: Any) -> None:  # noqa: ANN401
        before: Place = (layer - 1, "output") if layer else (None, "embedding")

        def began(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tell(self.folder, f"layer {layer + 1} of {self.n_layer}")
            x = args[0] if args else kwargs.get("hidden_states")
            if isinstance(x, Tensor):
                self._shown[before] = _rows(x)

        self._handles.append(module.register_forward_pre_hook(began, with_kwargs=True))
        self._keep_output(module, (layer, "output"))

    def _keep_output(self, module: Any, place: Place) -> None:  # noqa: ANN401
        def ended(module: object, args: object, out: Any) -> None:  # noqa: ANN401
            value = out[0] if isinstance(out, tuple) else out
            if isinstance(value, Tensor) and value.is_floating_point():
                self._shown[place] = _rows(value)

        self._handles.append(module.register_forward_hook(ended))

    def _on_module(self, tensor: str) -> Callable[..., None]:
        """Keep what a module makes of its tensor, and what it reads."""
        layer = self.by.places[tensor][0][0]

        def ended(module: object, args: tuple[Any, ...], out: Any) -> None:  # noqa: ANN401
            value = out[0] if isinstance(out, tuple) else out
            if isinstance(out, tuple) and layer is not None:
                self._keep_routes(layer, out)
            made = _rows(value)
            if tensor.endswith(("attn_q", "attn_k")) and self._name in PERMUTED:
                made = made[:, rope_row_order(made.shape[1], self._head_width(layer), "halves")]
            self._made[tensor] = made
            place = self.by.inputs.get(tensor)
            if place is not None and place not in self._shown and args:
                self._shown[place] = _rows(args[0])

        return ended

    def _keep_routes(self, layer: int, out: tuple[Any, ...]) -> None:
        """Keep the weights of the chosen experts, which a router gives with their ids [T, K]."""
        experts = None
        if self.arch is not None and (ffn := self.arch.layers[layer].ffn) is not None:
            experts = ffn.experts
        ids = next((x for x in out if isinstance(x, Tensor) and not x.is_floating_point()), None)
        if experts is None or ids is None or experts.down_scale:
            return
        shape = (len(self.ask.tokens), experts.used)
        weights = [x for x in out if isinstance(x, Tensor) and x.is_floating_point() and tuple(x.shape) == shape]
        if weights and tuple(ids.shape) == shape:
            self._shown[layer, ROUTED] = dense_weights(_rows(weights[-1]), ids.cpu().numpy(), experts.n)

    def _head_width(self, layer: int | None) -> int:
        a = None if self.arch is None or layer is None else self.arch.layers[layer].attention
        config = self.model.config
        return a.width if a is not None else (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def _watch_attention(self) -> None:
        """Register an attention that keeps q and k after RoPE and goes on as the model's own eager one."""
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        if not hasattr(sys.modules[type(self.model).__module__], "eager_attention_forward"):
            return
        self.attention = WATCHED

        def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:  # noqa: ANN401
            layer = module.layer_idx
            for stage, x_1NTH in (("q_rope", query), ("k_rope", key)):
                x_TQ = _rows(x_1NTH[0].transpose(0, 1).flatten(1))
                if self._name in PERMUTED:
                    x_TQ = x_TQ[:, rope_row_order(x_TQ.shape[1], x_1NTH.shape[-1], "halves")]
                self._shown[layer, stage] = x_TQ
            eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
            return eager(module, query, key, value, mask, **rest)

        AttentionInterface.register(WATCHED, watched)
        AttentionMaskInterface.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _rows(x: Tensor) -> Floats32:
    """A value's rows [T, W], kept."""
    return x.detach().reshape(-1, x.shape[-1]).float().cpu().numpy().copy()


@cache
def tensor_names(arch: str, n_layer: int) -> Callable[[str], str | None]:
    """What GGUF calls a module of the architecture."""
    import gguf

    by_name = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[arch], n_layer)
    return lambda name: names.get_name(name)
