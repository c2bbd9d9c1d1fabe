"""Read an importance matrix (GGUF of llama-imatrix): the mean square of what goes into each product, over a corpus.

in_sum2 [W]: sum of x^2 of a channel over counts tokens. It has no tokens and no single run: its l2 is of all that was
seen, so that nothing is compared with it but another one.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from core.formats.gguf_reader import read_gguf
from core.formats.model_file import ModelFile
from core.model.stages import STAGES, UNKNOWN_SCOPE, Place, place_order
from core.sources.imports.stated_facts import Stated, unknown_notes
from core.system.arrays import Floats32
from core.system.errors import FileError
from core.trace.engines import HALF_CACHE
from core.trace.record import CaptureContract, Token, Trace
from core.trace.stats import ScopeStats, Stats

SUMS, COUNTS = ".weight.in_sum2", ".weight.counts"
INTO = {w: s.inputs[0] for s in STAGES if s.operation == "linear" and not s.whole and not s.special for w in s.weights}
GIVEN = "previous"


def is_imatrix(path: Path) -> bool:
    """Say whether a file that begins as a GGUF is an importance matrix; FileError."""
    return bool(read_gguf(path).key("general.type") == "imatrix")


def read_imatrix(path: Path, stated: Stated) -> Trace:
    """Read the inputs' mean squares; FileError names the tensor."""
    file = read_gguf(path)
    cells: dict[Place, ScopeStats] = {}
    left_out = []
    for name in sorted(file.weights):
        if not name.endswith(SUMS):
            continue
        place = _place(name.removesuffix(SUMS))
        if place is None:
            left_out.append(ascii(name.removesuffix(SUMS))[1:40])
        elif place not in cells:
            cells[place] = ScopeStats({stated.scope or UNKNOWN_SCOPE: _stats(file, name)})
    if not cells:
        raise FileError(f"{path.name} is an importance matrix without a tensor blk.N.attn_q{SUMS}. Make it again.")
    facts = CaptureContract("llama.cpp", None, None, None, None, stated.definition, dtype="f32",
                            scopes=(stated.scope or UNKNOWN_SCOPE,), kernel=HALF_CACHE,  # the tool's own default
                            compute=None if stated.model is None else stated.model.compute)
    unknown = unknown_notes(scope=stated.scope, tokens=stated.tokens, architecture=None, depth=None, widths=None)
    left = (f"not inputs of a known product, left out: {', '.join(left_out[:6])}",) if left_out else ()
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(i) for i in stated.tokens or ()),
        cells=dict(sorted(cells.items(), key=lambda item: place_order(item[0]))),
        notes=("an importance matrix: the l2 of each product's input, over a corpus that it does not say", *left,
               *unknown),
        origin={"kind": "importance matrix", "imported_from": path.name})


def _place(name: str) -> Place | None:
    head, _, rest = name.partition(".")
    layer, _, weight = rest.partition(".")
    stage = INTO.get(weight)
    known = head == "blk" and layer.isdigit() and len(layer) < 7 and stage not in (None, GIVEN)
    return (int(layer), str(stage)) if known else None


def _stats(file: ModelFile, name: str) -> Stats:
    sums, counts = _numbers(file, name), _numbers(file, name.removesuffix(SUMS) + COUNTS)
    n_token = float(counts.sum())
    if not math.isfinite(n_token) or not 0 < n_token < 1 << 48 or not (sums >= 0).all() or not np.isfinite(sums).all():
        raise FileError(f"{file.path.name}: {ascii(name)[:60]} has sums of squares or counts that nothing makes. "
                        "Make it again.")
    return Stats(count=round(n_token) * len(sums), l2=math.sqrt(float(sums.sum(dtype=np.float64))))


def _numbers(file: ModelFile, name: str) -> Floats32:
    weight = file.weights.get(name)
    if weight is None or weight.quant != "F32":
        raise FileError(f"{file.path.name}: a tensor {ascii(name)[:60]} in F32 was needed. Make it again.")
    return weight.data.view("<f4").ravel()
