"""Read a model file's keys and claim its tensors, keeping count: what nobody read is then refused by name.

It knows no architecture: families.py asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from core.formats.model_file import ModelFile
from core.system.errors import ArchError, FileError
from core.system.mapped_file import quote_name

ELSEWHERE = ("Its weights can be read: apr-tui audit FILE; and another engine may run it, for statistics alone: "
             "apr-tui trace llama.cpp:FILE.")
# keys that change numbers, and the values that change none; what an architecture does not read must have one of these
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.scale": (0.0,), "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,), "attention.sliding_window": (0,), "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "router_logit_softcapping": (0.0,),
    "attention.shared_kv_layers": (0,), "attention.q_lora_rank": (0,), "attention.kv_lora_rank": (0,),
    "attention.indexer.top_k": (0,), "embedding_scale": (1.0, 0.0), "residual_scale": (1.0, 0.0),
    "logit_scale": (1.0, 0.0), "expert_count": (0,), "embedding_length_per_layer_input": (0,),
    "rope.scaling.alpha": (0.0,), "rope.scale_linear": (1.0, 0.0), "swin_norm": (False,),
    "altup.num_inputs": (0, 1), "ssm.dt_b_c_rms": (False,), "dense_2_feat_out": (0,), "pooling_type": (0,),
}


@dataclass(slots=True)
class FileFacts:
    """A file's keys and tensors, and which of them have been read or claimed."""

    model: ModelFile
    name: str  # of the architecture: keys begin with it
    read: set[str] = field(default_factory=set)
    claimed: set[str] = field(default_factory=set)
    arrays: dict[str, Any] = field(default_factory=dict)

    def value(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 (metadata has any type)
        """Return the value of {arch}.key, an array as a list."""
        self.read.add(key)
        if key not in self.arrays:
            self.arrays[key] = self.model.key(f"{self.name}.{key}")
        found = self.arrays[key]
        return default if found is None else found

    def number(self, key: str, default: float | None = None, layer: int | None = None) -> Any:  # noqa: ANN401
        """Return one number: of a layer, or the one that all share where a file gives one a layer; FileError."""
        value = self.value(key, default)
        if isinstance(value, list) and value:
            if layer is not None and layer < len(value):
                value = value[layer]
            elif all(v == value[0] for v in value):
                value = value[0]
        if value is None:
            raise FileError(
                f"{self.model.path.name} has no key {self.name}.{key}; its architecture needs it.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FileError(f"{self.model.path.name}: {self.name}.{key} is {value!r}; one number is needed.")
        return value

    def size(self, key: str, default: int | None = None, layer: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least so much; FileError."""
        value = self.number(key, default, layer)
        if not isinstance(value, int) or not least <= value < 1 << 31:
            raise FileError(
                f"{self.model.path.name}: {key} is {value!r}; a whole number from {least} is needed.")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number; FileError."""
        value = float(self.number(key, default))
        if not math.isfinite(value):
            raise FileError(f"{self.model.path.name}: {self.name}.{key} is {value}; a finite number is needed.")
        return value

    def has(self, name: str) -> bool:
        """Say whether the file has a tensor of that full name, or that name and .weight."""
        return name in self.model.weights or f"{name}.weight" in self.model.weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of name.weight; FileError where it is missing."""
        return self.model.weight(f"{name}.weight").shape

    def hold(self, name: str, *shape: int, needed: bool = True, loose: bool = False) -> bool:
        """Claim a tensor and hold it to its shape; says whether it is there. FileError.

        needed: a file without it is refused. loose: dimensions of 1 do not count.
        """
        if not needed and name not in self.model.weights:
            return False
        found = self.model.weight(name).shape
        given, wanted = ([n for n in s if n != 1] if loose else list(s) for s in (found, shape))
        if given != wanted:
            raise FileError(f"{self.model.path.name}: {name} has shape {list(found)}; "
                            f"its hyper-parameters need {list(shape)}.")
        self.claimed.add(name)
        return True

    def linear(self, name: str, *shape: int, needed: bool = True) -> bool:
        """Claim name.weight, and name.bias where there is one: a number for each row."""
        there = self.hold(f"{name}.weight", *shape, needed=needed)
        return there and (self.hold(f"{name}.bias", *shape[:-1], needed=False) or True)

    def refuse_unread(self, n_layer: int, notes: tuple[str, ...]) -> list[str]:
        """Refuse a tensor that nobody claimed, or a key whose value nobody read and which changes numbers; FileError.

        Returns notes for a person: what is skipped on purpose. notes: keys that are told instead.
        """
        said = []
        for name in self.model.weights:
            if name in self.claimed:
                continue
            part = name.split(".")
            if len(part) > 2 and part[0] == "blk" and part[1].isdecimal() and int(part[1]) >= n_layer:
                if int(part[1]) < self.value("block_count", 0):
                    said.append(part[1])
                    continue
                raise FileError(f"{self.model.path.name} has tensor {quote_name(name)}, but only {n_layer} layers. "
                                "Its metadata and its tensors do not belong together; convert it again.")
            raise ArchError(
                f"{self.model.path.name}: this build does not know tensor {quote_name(name)} of architecture "
                f"{self.name}: nothing would read it, so what is traced would not be this model. {ELSEWHERE}")
        told = [f"layer {each} (multi-token prediction) is not part of the forward: skipped"
                for each in sorted(set(said), key=int)]
        return told + [text for key in NEUTRAL if (text := self._unread(key, notes))]

    def _unread(self, key: str, notes: tuple[str, ...]) -> str:
        value = self.model.key(f"{self.name}.{key}")
        if value is None or key in self.read or value in NEUTRAL[key] or (isinstance(value, list) and not any(value)):
            return ""
        if key in notes:
            return f"{self.name}.{key} is {value}; neither this forward nor llama.cpp's reads it"
        raise ArchError(
            f"{self.model.path.name}: {self.name}.{key} is {value}, which the forward of {self.name} does not "
            "read, so what is traced would not be what the file says. Remove the key if it is wrong.")
