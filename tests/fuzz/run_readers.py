"""Rows of training: a run's folder, its checkpoints, configurations, vocabularies, shards, texts."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from apr_tui.render.train_state import view_text
from core.train.checkpoint import MODEL, NEEDED, OPTIMIZER, STATE, read_checkpoint
from core.train.config import read_preset
from core.train.data.corpus import find_documents
from core.train.data.shards import open_shards
from core.train.data.vocabulary import read_vocabulary
from core.train.log import rewind
from core.train.reader import open_run
from core.train.records import Step, Validation
from tests.fuzz.reader import Make, Reader, written

PLAN = {"config": "tiny", "arch": {"n_layer": 2}, "mode": "from-scratch", "steps": 4, "batch": 1, "seq": 8, "seed": 1}
RUN = {"schema": "apr-tui-train/1", "status": "RUNNING", "sentence": "a", "device": "cpu", "plan": PLAN, "pid": 1,
       "host": "elsewhere", "started": 1.0, "resumes": [{"at": 2.0}], "residency": {}, "corpus": {"notes": []}}
STEP = {f.name: "x" if f.type == "str" else 1 for f in fields(Step)}
GATE = {"id": "GATE-TRAIN-001", "rule": "r", "measured": "m", "verdict": "FAIL", "evidence": ""}
VAL = {f.name: "x" if f.type == "str" else 1 for f in fields(Validation)}
GRADS = {"step": 0, "rows": [{"layer": 0, "grad_norm": 0.5, "update_ratio": None, "zero_share": 0.0}],
         "parameters": {"w": [0.5, None, 0.0]}, "health": {"step": 0, "headroom_bits": 3.5, "headroom_at": "w"}}
LOGS = {"run.json": RUN, "train.jsonl": STEP, "val.jsonl": VAL, "gates.json": {"gates": [GATE]}, "grads.jsonl": GRADS,
        "gpu.jsonl": {"util_pct": 3, "memory_mib": 4, "power_w": 5, "temperature_c": 6}}
TOML = 'base = "tiny"\nn_layer = 2\nd_model = 64\nlr_factor = 2.5\n'


def _run_file(name: str) -> Make:
    def make(folder: Path) -> Path:
        for each, value in LOGS.items():
            (folder / each).write_text(json.dumps(value) + "\n")
        return folder / name

    return make


def _resume(path: Path) -> object:
    """What a resume does to the logs, on a copy: it rewrites them."""
    copy = path.parent / "copy"
    copy.mkdir(exist_ok=True)
    for name in LOGS:
        (copy / name).write_bytes((path.parent / name).read_bytes())
    return rewind(copy, 1)


def _checkpoint(name: str) -> Make:
    def make(folder: Path) -> Path:
        import torch
        from safetensors.torch import save_file

        for each in (MODEL, OPTIMIZER):
            save_file({"w": torch.ones(2, 4)}, folder / each)
        (folder / STATE).write_text(json.dumps(dict.fromkeys(NEEDED, 1)))
        return folder / name

    return make


def _vocabulary(name: str) -> Make:
    def make(folder: Path) -> Path:
        from tests.support.builders import byte_letters

        letters = [*byte_letters(), "ab", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(letters)}))
        (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        return folder / name

    return make


def _shards(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "train-00000.bin").write_bytes(bytes(400))
        (folder / "manifest.json").write_text(json.dumps({
            "schema": "apr-tui-corpus/1", "eos": 0,
            "shards": [{"file": "train-00000.bin", "split": "train", "tokens": 100}]}))
        return folder / name

    return make


RUNS: dict[str, Reader] = {
    **{f"run {name}": Reader(_run_file(name), lambda p: view_text(open_run(p.parent))) for name in LOGS},
    "resumed train.jsonl": Reader(_run_file("train.jsonl"), _resume, each_run=500),
    **{f"checkpoint {name}": Reader(_checkpoint(name), lambda p: read_checkpoint(p.parent))
       for name in (STATE, MODEL, OPTIMIZER)},
    "config": Reader(written("c.toml", TOML), lambda p: read_preset(str(p))),
    **{f"vocabulary {name}": Reader(_vocabulary(name), lambda p: read_vocabulary(p.parent))
       for name in ("vocab.json", "merges.txt")},
    **{f"shards {name}": Reader(_shards(name), lambda p: open_shards(p.parent, 64))
       for name in ("manifest.json", "train-00000.bin")},
    "corpus": Reader(written("a.txt", "some text\n" * 4), lambda p: [d.text() for d in find_documents(p.parent)[0]]),
}
