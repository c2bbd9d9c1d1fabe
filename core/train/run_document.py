"""Write what run.json says: of a run before step 0, of one that goes on, of one that failed."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.system.errors import AprError, Cancelled, UsageError
from core.train.config import n_parameters
from core.train.data.corpus import Corpus
from core.train.log import RUN, SCHEMA, read_document, rewind, write_document
from core.train.prepare import PreparedRun, is_first
from core.train.records import FAILED, INTERRUPTED, RUNNING

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "gguf")


def first_document(prepared: PreparedRun, corpus: Corpus, facts: dict[str, Any]) -> dict[str, Any]:
    """What run.json says before step 0; facts: of the device and the world."""
    plan, manifest = prepared.plan, corpus.shards.manifest
    return {
        "schema": SCHEMA, "status": RUNNING, "sentence": "", "command": prepared.options.command, "pid": os.getpid(),
        "host": platform.node(), "started": time.time(), "resumes": [], "plan": asdict(plan),
        "parameters": n_parameters(plan.arch), "device": prepared.device, "device_reason": prepared.reason,
        "device_wanted": prepared.options.device, **facts,
        "corpus": {"folder": str(corpus.shards.folder), "sha256": manifest.get("corpus_sha256"),
                   "documents": manifest.get("documents"), "train_tokens": corpus.shards.n_train,
                   "notes": corpus.notes},
        "tokenizer_sha256": corpus.vocabulary.sha256 if corpus.vocabulary else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "executable": sys.executable,
    }


def next_document(prepared: PreparedRun, corpus: Corpus, facts: dict[str, Any], steps_done: int) -> dict[str, Any]:
    """What run.json says of a resumed run; UsageError where the data is not that of the run. Logs are cut back."""
    assert prepared.run is not None
    fresh = first_document(prepared, corpus, facts)
    for name, old, new in (("corpus", prepared.run["corpus"]["sha256"], fresh["corpus"]["sha256"]),
                           ("tokenizer", prepared.run["tokenizer_sha256"], fresh["tokenizer_sha256"])):
        if old != new:
            raise UsageError(f"the {name} is not the one that {prepared.options.out} began with (its hash differs). "
                             "Put it back, or begin a new run.")
    cut = rewind(prepared.options.out, steps_done)
    note = {"at": time.time(), "steps_done": steps_done, "trained_again": cut, "command": prepared.options.command}
    return {**fresh, "started": prepared.run["started"], "resumes": [*prepared.run.get("resumes", []), note]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def note_failure(out: Path, error: AprError) -> None:
    """Leave the reason in run.json where there is one and it can be written."""
    try:
        if (out / RUN).is_file() and is_first():
            status = INTERRUPTED if isinstance(error, Cancelled) else FAILED
            write_document(out / RUN, {**read_document(out / RUN), "status": status, "sentence": str(error)})
    except AprError:
        return
