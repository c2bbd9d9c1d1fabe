"""Rows of what other tools write: traces to import, in every form, and the folders and answers of other engines."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from core.sources.engines import process
from core.sources.engines.process import Answer, Ask
from core.sources.engines.trace import folder_tokens
from core.sources.imports.open_trace import import_trace
from core.trace.request import Prompt
from core.trace.values_file import write_values
from tests.fuzz.model_readers import DOCUMENTS, gguf
from tests.fuzz.reader import Make, Reader, written
from tests.sources.test_imports import trace_text
from tests.support.foreign_dumps import write_imatrix, write_log, write_npz, write_rows, write_safetensors, write_tree
from tests.support.traces import values

IDS = (1, 2)
KEPT = ("embedding", "attn_norm", "qkv", "attn_mix", "attn_out", "ffn_norm", "ffn_swigl", "output", "logits")
CELL = {"count": 8, "nan_count": 0, "inf_count": 0, "zero_count": 0, "min": -1.0, "max": 1.0, "mean": 0.1,
        "std_dev": 0.5}
APR_JSON = {"encoded_tokens": [5, 6], "hidden_dim": 8, "num_layers": 1, "vocab_size": 9, "architecture": "qwen2",
            "layers": [{"layer_idx": 0} | dict.fromkeys(
                ("attn_norm", "qkv", "attn_out", "ffn_norm", "ffn_out", "output"), CELL)],
            "logits": {"top_k": [{"token_id": 1, "logit": 2.5}]}}
WIDE = "layer,attn_norm,qkv\n0,1.5,2.25\n1,0.5,1e-3\n"
CELLS = 'layer,stage,scope,mean,std\n0,attn_norm,all,0.1,1.5\n0,qkv,all,"0.2",2.5\n'


def _values() -> dict[Any, Any]:
    """A stage of each kind: of a short file a mutant changes what matters, and it is read sooner."""
    x = {place: x for place, x in values(2, n_layer=1, width=8).items() if place[1] in KEPT}
    x[0, "qkv"] = np.hstack([x[0, "qkv"]] * 4)
    return x


def _dump(write: Callable[[Path, dict[Any, Any]], Path]) -> Make:
    return lambda folder: write(folder, _values())


def _tree_with_arrays(folder: Path) -> Path:
    """A tree whose values lie beside it, in the file that is mutated."""
    from safetensors.numpy import save_file

    path = write_tree(folder, _values(), IDS)
    tree = json.loads(path.read_text())
    tree["children"][0]["outputs"]["value"] = "./x.safetensors"
    path.write_text(json.dumps(tree))
    save_file({"data": np.ones((1, 2, 8), np.float32)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def _sglang(folder: Path) -> Path:
    inner = folder / "TP0_PP0_Rank0_pid7"
    inner.mkdir()
    names = {"embed_tokens": 8, "layers.0.input_layernorm": 8, "layers.0.self_attn.qkv_proj": 16}
    np.savez(inner / "Pass00000.npz", **{f"model.{n}": np.ones((2, w), np.float32) for n, w in names.items()})
    return inner / "Pass00000.npz"


def _stage_files(folder: Path) -> Path:
    for layer in range(2):
        (folder / f"layer-{layer}").mkdir()
        for stage in ("attn_norm", "ffn_out"):
            (folder / f"layer-{layer}" / f"{stage}.bin").write_bytes(
                struct.pack("<4sII8f", b"APRT", layer, 8, *range(8)))
    return folder / "layer-0" / "attn_norm.bin"


def _with_model(path: Path) -> object:
    return import_trace(path, tokens=None, model=next(path.parent.glob("m.gguf"), None))


def _named_with_model(folder: Path) -> Path:
    gguf(folder)
    arrays = {"0.attn_norm": np.ones((2, 16), np.float32), "model.layers.0.mlp.down_proj": np.ones((2, 16), np.float32)}
    np.savez(folder / "d.npz", tokens=np.asarray(IDS), **arrays)
    return folder / "d.npz"


def _folder(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "config.json").write_text('{"vocab_size": 9}')
        (folder / "tokenizer.json").write_text(DOCUMENTS["tokenizer.json"])
        return folder / name

    return make


ANSWER = Answer("e", "f32", "float32", "qwen2", 1, 8, 9, IDS, 1, "cpu", "k", True, ("a note",))


def _answered(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / process.ASK).write_text(json.dumps(asdict(Ask("m.gguf", IDS))))
        (folder / process.ANSWER).write_text(json.dumps(asdict(ANSWER)))
        (folder / process.LOG).write_text("a line\nthe last line\n")
        (folder / process.PROGRESS).write_text("loading\nlayer 1\n")
        write_values(folder / process.VALUES, {(0, "qkv"): np.ones((2, 8), np.float32)})
        return folder / name

    return make


def _read_answer(path: Path) -> object:
    """What a parent reads of its child's folder, and a child of its parent's."""
    folder = path.parent
    try:
        process.read_ask(folder)
    except (ValueError, RecursionError):  # the child then ends; the parent, which wrote it, says so
        assert path.name == process.ASK
    return (process._last_line(folder), process._lines_since(folder / process.PROGRESS, 0),
            process._read_answer(folder, "llama.cpp"), process._read_values(folder, "llama.cpp", len(IDS)))


FOREIGN: dict[str, Reader] = {
    "apr trace text": Reader(written("t.txt", trace_text()), import_trace),
    "apr trace json": Reader(written("t.json", json.dumps(APR_JSON)), import_trace),
    "table of stds": Reader(written("t.csv", WIDE), import_trace),
    "table of cells": Reader(written("t.csv", CELLS), import_trace),
    "rows of cells": Reader(_dump(lambda f, x: write_rows(f / "d.jsonl", x, IDS)), import_trace),
    "llama.cpp log": Reader(_dump(lambda f, x: write_log(f / "log.txt", x, 8)), lambda p: import_trace(p, tokens=IDS)),
    "npz": Reader(_dump(lambda f, x: write_npz(f / "d.npz", x, IDS)), import_trace),
    "npz and a model": Reader(_named_with_model, _with_model, each_run=300),
    "safetensors": Reader(_dump(lambda f, x: write_safetensors(f / "d.safetensors", x, IDS)), import_trace),
    "npy": Reader(lambda f: _npy(f / "0.attn_norm.npy"), import_trace),
    "folder of arrays": Reader(lambda f: _npy(f / "0.attn_norm.npy"), lambda p: import_trace(p.parent, tokens=IDS)),
    "debugger tree": Reader(_dump(lambda f, x: write_tree(f, x, IDS)), import_trace),
    "debugger arrays": Reader(_tree_with_arrays, lambda p: import_trace(p.parent)),
    "sglang": Reader(_sglang, lambda p: import_trace(p.parents[1], tokens=IDS)),
    "imatrix": Reader(_dump(lambda f, x: write_imatrix(f / "im.gguf", x)), import_trace),
    "stage files": Reader(_stage_files, lambda p: import_trace(p.parents[1])),
    **{f"engine's {name}": Reader(_folder(name), lambda p: folder_tokens(p.parent, Prompt(text="ab")))
       for name in ("config.json", "tokenizer.json")},
    **{f"engine's {name}": Reader(_answered(name), _read_answer)
       for name in (process.ASK, process.ANSWER, process.VALUES, process.LOG, process.PROGRESS)},
}


def _npy(path: Path) -> Path:
    np.save(path, np.ones((2, 8), np.float32))
    return path
