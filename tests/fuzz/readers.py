"""Every kind of file that is read, a row each: a good one, and how it is read as far as the program ever does."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from apr_tui.cli.commands import read_arguments
from apr_tui.cli.launch import prompt_of
from apr_tui.cli.output import saved_text, trace_json
from apr_tui.render.train_state import view_text
from core.bundle.reader import read_bundle
from core.formats import identity
from core.formats.apr_writer import write_apr
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.proof.contract_gates import contract_gates
from core.proof.ladder_cache import _read as read_ladder
from core.session.prepare import open_once
from core.sources.engines.trace import _vocab_size
from core.sources.imports.open_trace import import_trace
from core.system import paths
from core.system.regular_file import read_text
from core.text.tokenizer import open_tokenizer
from core.trace.hints import find_hints
from core.trace.request import RunOptions
from core.train.config import read_preset
from core.train.data.shards import open_shards
from core.train.data.vocabulary import read_vocabulary
from core.train.reader import open_run
from core.train.records import Step, Validation
from tests.sources.test_imports import trace_text
from tests.support.bundles import save, spiking
from tests.support.small_models import write_model

Read = Callable[[Path], object]
Mend = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Reader:
    """One kind. make: write a good file below a folder and return its path, which is what is mutated. read: of that
    path. mend: make a mutant's checksum right, so that what stands behind it is read too.
    """

    make: Callable[[Path], Path]
    read: Read
    mend: Mend = bytes


def _model(path: Path) -> object:
    opened = open_once(path)
    for name in opened.file.keys:
        opened.file.key(name)
    return open_tokenizer(opened.file).encode("ab 12"), opened.file.types_text()


def _gguf(folder: Path) -> Path:
    return write_model(folder / "m.gguf", tokenizer="bpe", n_layer=1, d_model=16, n_head=2, n_kv_head=1, d_ff=16)


def _apr(folder: Path) -> Path:
    write_apr(folder / "m.apr", open_model(_gguf(folder)))
    return folder / "m.apr"


def _open_apr(path: Path) -> object:
    file = open_model(path)
    assert file.verify is not None
    _model(path)
    file.verify()
    return read_arch(file)


def _mend_apr(data: bytes) -> bytes:
    if len(data) < 68:
        return data
    head = data[:40] + struct.pack("<I", zlib.crc32(data[44:64], zlib.crc32(data[:40]))) + data[44:64]
    return head + data[64:-4] + struct.pack("<I", zlib.crc32(data[64:-4], zlib.crc32(head)))

KEPT = {(0, "qkv"): np.ones((2, 8), np.float32), (1, "ffn_out"): np.ones((2, 8), np.float16)}


def _bundle_file(name: str) -> Callable[[Path], Path]:
    return lambda folder: save(spiking(2, generated="4", values=KEPT), folder / "b", keep=True) / name


def _open_bundle(path: Path) -> object:
    """Read a bundle as `show --text` and --json do, with its values; the sums of its tables are set right first."""
    folder = path.parent
    manifest = folder / "manifest.json"
    if path != manifest:
        told = json.loads(manifest.read_bytes())
        told["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(told))
    trace = read_bundle(folder)
    for place in trace.values or ():
        trace.values[place].sum()
    scope = (trace.facts.scopes or ("all",))[0]
    options = RunOptions(scope=scope)
    return saved_text(trace, options, as_json=False), trace_json(trace, scope, find_hints(trace, scope=scope))


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def _aprt(folder: Path) -> Path:
    for layer in range(2):
        (folder / f"layer-{layer}").mkdir()
        for stage in ("attn_norm", "ffn_out"):
            (folder / f"layer-{layer}" / f"{stage}.bin").write_bytes(
                struct.pack("<4sII8f", b"APRT", layer, 8, *range(8)))
    return folder / "layer-0" / "attn_norm.bin"


PLAN = {"config": "tiny", "arch": {"n_layer": 2}, "mode": "from-scratch", "steps": 4, "batch": 1, "seq": 8, "seed": 1}
RUN = {"schema": "apr-tui-train/1", "status": "RUNNING", "sentence": "a", "device": "cpu", "plan": PLAN, "pid": 1,
       "host": "elsewhere", "started": 1.0, "resumes": [{"at": 2.0}], "residency": {}, "corpus": {"notes": []}}
STEP = {f.name: "x" if f.type == "str" else 1 for f in fields(Step)}
GATE = {"id": "GATE-TRAIN-001", "rule": "r", "measured": "m", "verdict": "FAIL", "evidence": ""}
VAL = {f.name: "x" if f.type == "str" else 1 for f in fields(Validation)}
LOGS = {"run.json": RUN, "train.jsonl": STEP, "val.jsonl": VAL, "gates.json": {"gates": [GATE]},
        "gpu.jsonl": {"util_pct": 3, "memory_mib": 4, "power_w": 5, "temperature_c": 6}}


def _run_file(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for each, value in LOGS.items():
            (folder / each).write_text(json.dumps(value) + "\n")
        return folder / name

    return make


def _cached(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.environ["XDG_CACHE_HOME"] = str(folder)
        path = paths.make_own(paths.cache_folder() / "d") / name
        path.write_text('{"stamp": [1, 2, 3], "digest": "blake2b:00"}' if name == "d.json" else '["1.qkv", 0.5]\n' * 3)
        return path

    return make


def _read_digest(path: Path) -> object:
    """The digest that is kept of a path, where the mutant itself is what is kept."""
    usual, identity._home = identity._home, lambda path: path
    try:
        return identity._kept(path)
    finally:
        identity._home = usual


def _vocabulary(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tests.support.builders import byte_letters

        letters = [*byte_letters(), "ab", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(letters)}))
        (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        return folder / name

    return make


def _shards(folder: Path) -> Path:
    (folder / "train-00000.bin").write_bytes(bytes(400))
    (folder / "manifest.json").write_text(json.dumps({
        "schema": "apr-tui-corpus/1", "eos": 0,
        "shards": [{"file": "train-00000.bin", "split": "train", "tokens": 100}]}))
    return folder / "manifest.json"


CELL = {"count": 8, "nan_count": 0, "inf_count": 0, "zero_count": 0, "min": -1.0, "max": 1.0, "mean": 0.1,
        "std_dev": 0.5}
APR_JSON = {"encoded_tokens": [5, 6], "hidden_dim": 8, "num_layers": 1, "vocab_size": 9, "architecture": "qwen2",
            "layers": [{"layer_idx": 0} | dict.fromkeys(
                ("attn_norm", "qkv", "attn_out", "ffn_norm", "ffn_out", "output"), CELL)],
            "logits": {"top_k": [{"token_id": 1, "logit": 2.5}]}}
CONTRACT = "name: c\nfalsification_tests:\n- id: FFN-GGUF-001\n  rule: a rule\n- {id: BAND, rule: [a, 1, 2.5]}\n"
TOML = 'base = "tiny"\nn_layer = 2\nd_model = 64\nlr_factor = 2.5\n'
WORDS = json.dumps(["--threads", "2", "--tokens", "1,2,3", "--scope", "pos:1", "--layers", "0..2", "--threshold", "3"])


def _read_words(path: Path) -> object:
    """A command line: the words of a JSON list."""
    try:
        words = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    flat = [str(w).replace("\0", "") for w in words] if isinstance(words, list) else []
    if {"--help", "-h"} & {*flat}:
        return None
    return prompt_of(read_arguments("trace", ["m.gguf", *flat]))


READERS: dict[str, Reader] = {
    "gguf": Reader(_gguf, _model),
    "apr": Reader(_apr, _open_apr, _mend_apr),
    **{f"bundle {name}": Reader(_bundle_file(name), _open_bundle)
       for name in ("manifest.json", "stats.csv", "tokens.csv", "findings.json", "values.safetensors")},
    "apr trace text": Reader(_text("t.txt", trace_text()), import_trace),
    "apr trace json": Reader(_text("t.json", json.dumps(APR_JSON)), import_trace),
    "table of stds": Reader(_text("t.csv", "layer,attn_norm,qkv\n0,1.5,2.25\n1,0.5,1e-3\n"), import_trace),
    "stage files": Reader(_aprt, lambda p: import_trace(p.parents[1])),
    "contract": Reader(_text("c.yaml", CONTRACT), lambda p: contract_gates(read_text(p, 1 << 20, ""), "c", [])),
    **{f"run {name}": Reader(_run_file(name), lambda p: view_text(open_run(p.parent))) for name in LOGS},
    "config": Reader(_text("c.toml", TOML), lambda p: read_preset(str(p))),
    **{f"vocabulary {name}": Reader(_vocabulary(name), lambda p: read_vocabulary(p.parent))
       for name in ("vocab.json", "merges.txt")},
    "shards": Reader(_shards, lambda p: open_shards(p.parent, 64)),
    "config.json": Reader(_text("config.json", '{"vocab_size": 9}'), _vocab_size),
    "kept digest": Reader(_cached("d.json"), _read_digest),
    "kept rungs": Reader(_cached("l.jsonl"), read_ladder),
    "command line": Reader(_text("w.json", WORDS), _read_words),
}
