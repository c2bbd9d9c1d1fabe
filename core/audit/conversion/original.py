"""Open what a file was made from: a folder of safetensors, one .safetensors, a GGUF or an .apr. No code, no pickles.

Records: an Original has a folder's configuration and documents, or the model file that it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.audit.conversion.safetensors_file import TensorFile, read_safetensors
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.quant.weight import Weight
from core.system.errors import FileError, os_reason
from core.system.mapped_file import quote_name
from core.system.regular_file import read_file

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json that is known has 33 MB
MAX_FILES = 4096
INDEX, CONFIG, ADAPTER = "model.safetensors.index.json", "config.json", "adapter_model.safetensors"
DOCUMENTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
             "special_tokens_map.json", "adapter_config.json")
TEMPLATE = "chat_template.jinja"
REPAIR = "Give the folder as the model's publisher wrote it."


@dataclass(frozen=True, slots=True)
class Original:
    """An opened original. config: empty where there is none. documents: file name -> its parsed JSON.

    adapter: low-rank tensors beside the weights, to be merged. model: set where the original is a GGUF or an .apr.
    """

    path: Path
    weights: Mapping[str, Weight] = field(repr=False)
    unread: Mapping[str, str] = field(default_factory=dict, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    documents: Mapping[str, Any] = field(default_factory=dict, repr=False)
    template: str | None = field(default=None, repr=False)
    adapter: Mapping[str, Weight] = field(default_factory=dict, repr=False)
    model: ModelFile | None = field(default=None, repr=False)


def open_original(path: Path) -> Original:
    """Open an original; FileError says what is missing or refused."""
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".safetensors":
        found = read_safetensors(path)
        return Original(path, found.weights, found.unread)
    if path.suffix in PICKLES:
        raise FileError(f"{path.name} may be a pickle; pickles are never opened. Save the model as safetensors.")
    model = open_model(path)
    return Original(path, model.weights, model=model)


def _open_folder(folder: Path) -> Original:
    try:
        names = sorted(entry.name for entry in folder.iterdir())[:MAX_FILES]
    except OSError as error:
        raise FileError(f"{folder} could not be read: {os_reason(error)}. Check its permissions.") from error
    found = _shards(folder, names)
    documents = {name: _read_json(folder / name) for name in DOCUMENTS if name in names}
    if CONFIG not in documents:
        raise FileError(f"{folder.name} has no {CONFIG}; it says what the tensors are. {REPAIR}")
    adapter = read_safetensors(folder / ADAPTER).weights if ADAPTER in names else {}
    template = _read(folder / TEMPLATE).decode(errors="replace") if TEMPLATE in names else None
    return Original(folder, found.weights, found.unread, flat_config(documents[CONFIG]), documents, template, adapter)


def _shards(folder: Path, names: list[str]) -> TensorFile:
    """The tensors of all shards: those that the index names, else every .safetensors but the adapter."""
    files = [name for name in names if name.endswith(".safetensors") and name != ADAPTER]
    if INDEX in names:
        files = _indexed(folder)
    if not files:
        pickles = [name for name in names if name.endswith(PICKLES)]
        why = f"it has pickles only ({pickles[0]}), and pickles are never opened" if pickles else "it has none"
        raise FileError(f"{folder.name} has no safetensors: {why}. Save the model as safetensors.")
    weights: dict[str, Weight] = {}
    unread: dict[str, str] = {}
    for name in files:
        part = read_safetensors(folder / name)
        both = next((tensor for tensor in part.weights if tensor in weights), None)
        if both is not None:
            raise FileError(f"{folder.name}: {quote_name(both)} stands in two files, {quote_name(name)} and an earlier "
                            f"one. They are not one model; {REPAIR}")
        weights.update(part.weights)
        unread.update(part.unread)
    return TensorFile(weights, unread)


def _indexed(folder: Path) -> list[str]:
    """The files of an index: plain names in this folder."""
    index = _read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise FileError(f"{INDEX} of {folder.name} has no weight_map of names. {REPAIR}")
    files = sorted(set(places.values()))
    bad = next((name for name in files if Path(name).name != name or not name.endswith(".safetensors")), None)
    if bad is not None or len(files) > MAX_FILES:
        raise FileError(f"{INDEX} of {folder.name} names {quote_name(bad or str(len(files)))}; plain names of "
                        f".safetensors files in the folder were needed. {REPAIR}")
    return files


def flat_config(document: object) -> dict[str, Any]:
    """A configuration as one mapping: the text model's part over the whole one's, RoPE's parameters in one place.

    rope_parameters as transformers 5 writes them, or rope_theta and rope_scaling of older ones, become rope_parameters.
    """
    if not isinstance(document, dict):
        raise FileError(f"{CONFIG} is no JSON object. {REPAIR}")
    text = document.get("text_config")
    config = {**document, **text} if isinstance(text, dict) else dict(document)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        scaling = config.get("rope_scaling")
        rope = dict(scaling) if isinstance(scaling, dict) else {}
        rope.setdefault("rope_type", rope.pop("type", "default"))
    config["rope_parameters"] = rope
    return config


def _read_json(path: Path) -> Any:  # noqa: ANN401 (a document is any value)
    """Parse a document; Python's literals NaN and Infinity stand in configurations (time_step_limit of Mamba 2)."""
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path.name} is not a JSON document: {error}. {REPAIR}") from error


def _read(path: Path) -> bytes:
    return read_file(path, MAX_JSON_BYTES, REPAIR)
