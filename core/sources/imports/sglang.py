"""Read an SGLang folder (--debug-tensor-dump-output-folder, or its dumper), once its .pt files are written anew.

SGLang writes pickles: TP0_PP0_Rank0_pidN/Pass00000.pt, or ...___name=NAME___....pt. They are refused with the line that
turns them into safetensors, whose names stay. One rank is read: the shards of several are no stage of the model. There
the residual stands beside the hidden state: NAME.0 and NAME.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.sources.imports.array_bytes import Array
from core.sources.imports.array_folder import array_files, arrays_of, collect
from core.sources.imports.dump import trace_of_dump
from core.sources.imports.foreign_names import Hidden, Part
from core.sources.imports.stated_facts import Stated
from core.system.errors import FileError
from core.trace.record import Trace

_RANK = re.compile(r"TP[0-9]+_PP[0-9]+_Rank[0-9]+")
_PASS = re.compile(r"Pass[0-9]+$")
_DUMPED = re.compile(r"(?:^|___)name=(.+?)(?:___|$)")
_LAYER = re.compile(r"(?:^|___)layer_id=([0-9]{1,6})(?:___|$)")


def is_sglang(folder: Path) -> bool:
    """Say whether a folder's names are those of SGLang."""
    try:
        names = [p.stem for p in folder.iterdir()]
    except OSError:
        return False
    return any(_RANK.match(n) or _PASS.match(n) or _DUMPED.search(n) for n in names) or bool(_RANK.match(folder.name))


def read_sglang_folder(folder: Path, stated: Stated) -> Trace:
    """Read the first pass of the only rank; FileError, UsageError."""
    ranks = sorted(p for p in folder.iterdir() if p.is_dir() and _RANK.match(p.name))
    if len(ranks) > 1:
        raise FileError(f"{folder.name} holds {len(ranks)} ranks; a part of a stage cannot be judged. Run with --tp 1.")
    files = array_files(ranks[0] if ranks else folder)
    passes = [p for p in files if _PASS.match(p.stem)]
    dump = collect("SGLang tensor dump", "SGLang", _named(passes[:1] or files), folder)
    has_gate = any(part[1] == "mlp.gate_up_proj" for part in dump.parts if isinstance(part, tuple))
    if has_gate:  # its activation is gate and up in one
        dump = replace(dump, parts={_product(part): x for part, x in dump.parts.items()})
    more = (f"{len(passes)} passes; the first is read",) if len(passes) > 1 else ()
    return trace_of_dump(replace(dump, notes=more), folder, stated)


def _named(files: list[Path]) -> Iterator[tuple[str, Array, str]]:
    for name, x, dtype in arrays_of(files):
        found, layer = _DUMPED.search(name), _LAYER.search(name)
        inner = found[1] if found else name
        yield (f"{layer[1]}.{inner}" if layer else inner), x, dtype


def _product(part: Part | Hidden) -> Part | Hidden:
    return (part[0], "ffn_swigl") if isinstance(part, tuple) and part[1] == "ffn_silu" else part
