"""Every kind of thing that is written, a row each: how it is written in place of an older one, and whether it is whole.

Beside these there are logs, of which a killed process leaves a last line that is cut: readers stop before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf  # noqa: F401 (here once, not in each child that is killed)
import numpy as np
import polars  # noqa: F401
import torch

from core.bundle import costs
from core.bundle.reader import read_bundle
from core.damage.kl import TokenKl
from core.damage.run_kl import ChunkStore
from core.demo.files import write_demo
from core.formats import identity
from core.formats.open_model import open_model
from core.model.convert import convert
from core.session.costs import is_cost
from core.system import atomic_folder, paths
from core.system.atomic_file import new_file
from core.system.atomic_folder import new_folder
from core.system.errors import AprError
from core.train.checkpoint import State, read_checkpoint, write_checkpoint
from core.train.config import PRESETS
from core.train.log import RUN, read_document, write_document
from tests.fuzz.evidence_readers import _trace
from tests.hostile.test_reports import bill, kl
from tests.support.bundles import save


@dataclass(frozen=True, slots=True)
class Writer:
    """write: the thing of a text (a, b, c) into a folder, over an older one. is_whole: what stands there is one that
    was written. seconds: about how long writing takes.
    """

    write: Callable[[Path, str], object]
    is_whole: Callable[[Path], bool]
    seconds: float = 0.01


def _file(folder: Path, text: str) -> None:
    with new_file(folder / "f", force=True) as part:
        part.write_text(text * 1000)


def _is_one_text(folder: Path) -> bool:
    text = (folder / "f").read_text()
    return len({*text}) == 1 and len(text) == 1000


def _folder(folder: Path, text: str) -> None:
    with new_folder(folder / "b", force=True) as part:
        for name in ("manifest.json", "stats.csv"):
            (part / name).write_text('{"schema": "apr-tui/1", "sha256": {"stats.csv": ""}, "x": "%s"}' % (text * 1000))


def _is_one_folder(folder: Path) -> bool:
    return len({(folder / "b" / name).read_text() for name in ("manifest.json", "stats.csv")}) == 1


def _without_exchange(folder: Path, text: str) -> None:
    atomic_folder.exchange = lambda left, right: False  # type: ignore[assignment]
    _folder(folder, text)


def _is_one_folder_or_aside(folder: Path) -> bool:
    return _is_one_folder(folder) if (folder / "b").exists() else any(p.name.endswith(".old") for p in folder.iterdir())


def _source(folder: Path) -> Path:
    """The demonstration's file, made once beside the folder."""
    source = folder.parent / "source"
    if not (source / "demo.apr").exists():
        write_demo(source, force=True)
    return source / "demo.gguf"


def _convert(folder: Path, text: str) -> None:
    convert(_source(folder), folder / "c.apr", force=True)


def _are_models(folder: Path) -> bool:
    for path in (p for p in folder.iterdir() if not p.name.startswith(".")):
        file = open_model(path)
        if file.verify is not None:
            file.verify()
    return True


def _bundle(folder: Path, text: str) -> None:
    save(replace(_trace(), name=text), folder / "b", force=True, keep=True)


def _is_bundle(folder: Path) -> bool:
    trace = read_bundle(folder / "b")
    return trace.name in ("a", "b", "c") and all(len(trace.values[p]) for p in trace.values or ())


def _bill(folder: Path, text: str) -> None:
    costs.write_damage(folder / "d", bill(), (text, None), force=True, command="x", repeat="x")


def _is_bill(folder: Path) -> bool:
    return json.loads(costs.read_cost(folder / "d", as_json=True))["file"] in ("a", "b", "c")


def _kl(folder: Path, text: str) -> None:
    state = ChunkStore.begin(folder / "k", "a run")
    for i in range(2):
        state.write(i, TokenKl(*np.full((5, 3), float("abc".index(text)))))
    costs.write_kl(folder / "k", kl(), command="x", repeat="x")


def _is_kl(folder: Path) -> bool:
    """Its chunks are there; its results are, or are not yet again, and then no manifest says so."""
    state = ChunkStore.begin(folder / "k", "a run")
    if is_cost(folder / "k"):
        costs.read_cost(folder / "k", as_json=True)
    return all(found is not None and len({*found.kl}) == 1 for found in (state.read(i, 3) for i in range(2)))


def _checkpoint(folder: Path, text: str) -> None:
    arch = replace(PRESETS["tiny"], n_layer=1, d_model=8, n_head=2, n_kv_head=1, d_ff=8, n_vocab=16).arch()
    weights = {"token_embd.weight": torch.full((arch.n_vocab, arch.d_model), float("abc".index(text)))}
    state = {"steps_done": "abc".index(text), "tokens_seen": 1, "memory": {}, "best": None}
    write_checkpoint(folder, "abc".index(text), State(weights, {}, state), arch, None, None, text)


def _are_checkpoints(folder: Path) -> bool:
    """Each that has a name is whole, and there is one."""
    found = [p for p in (folder / "ckpt").iterdir() if not p.name.startswith(".")]
    for path in found:
        read_checkpoint(path)
        _are_models_of(path)
    return bool(found)


def _are_models_of(folder: Path) -> None:
    for name in ("model.gguf", "model.apr"):
        open_model(folder / name)


def _run(folder: Path, text: str) -> None:
    write_document(folder / RUN, {"x": text * 1000})


def _is_run(folder: Path) -> bool:
    return len({*read_document(folder / RUN)["x"]}) == 1


def _digest(folder: Path, text: str) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    identity._keep(folder / "m", (1, 2, 3), text)


def _is_digest(folder: Path) -> bool:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    kept = identity._kept(folder / "m")
    return paths.cache_folder().exists() and kept is not None and kept[1] in "abc"


WRITERS: dict[str, Writer] = {
    "file": Writer(_file, _is_one_text), "folder": Writer(_folder, _is_one_folder),
    "two renames": Writer(_without_exchange, _is_one_folder_or_aside),
    "demo": Writer(lambda folder, text: write_demo(folder, force=True), _are_models, 0.5),
    "convert": Writer(_convert, _are_models, 0.5), "bundle": Writer(_bundle, _is_bundle, 0.05),
    "bill of damage": Writer(_bill, _is_bill, 0.02), "state and result of kl": Writer(_kl, _is_kl, 0.03),
    "checkpoint": Writer(_checkpoint, _are_checkpoints, 0.05), "run.json": Writer(_run, _is_run),
    "kept digest": Writer(_digest, _is_digest),
}


def is_whole(writer: Writer, folder: Path) -> bool:
    """Whether what stands there is whole; an error is a no."""
    try:
        return writer.is_whole(folder)
    except (AprError, OSError, ValueError, KeyError):
        return False
