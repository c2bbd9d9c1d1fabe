"""Turn the values that a reader found into a Trace: parts joined, shapes held to one another, cells measured.

x_TW: tokens x width. A dump has all T tokens, or the positions of --scope; logits may be the last token's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.formats.architectures import rope_row_order
from core.model.stages import FACTORS, PRODUCT, Place, place_order, place_text, scope_positions, stage_named
from core.sources.imports.foreign_names import HALVES, JOINED, QKV, Hidden, Part
from core.sources.imports.stated_facts import Stated, settle_fact, unknown_notes
from core.sources.imports.stated_model import StatedModel
from core.system.arrays import Floats32
from core.system.errors import FileError, UsageError
from core.trace.measure import measure_array
from core.trace.record import CaptureContract, Token, Trace
from core.trace.stats import Cell


@dataclass(frozen=True, slots=True)
class Dump:
    """What a reader found in a file or folder. parts: arrays [.., T, W] by what they are.

    compute, dtype: None where it does not say. tokens: the ids that were fed. turned: whether q and k of module paths
    stand in transformers' row order, which is not that of every GGUF. left_out: names that are no stage here.
    """

    kind: str
    engine: str | None
    parts: Mapping[Part | Hidden, Floats32]
    tokens: tuple[int, ...] | None = None
    compute: str | None = None
    dtype: str | None = None
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()


def trace_of_dump(dump: Dump, path: Path, stated: Stated) -> Trace:
    """Measure every stage. FileError: shapes that do not go together; UsageError: what the user says does not fit."""
    if stated.definition not in (None, "sample"):
        raise UsageError("These statistics are computed here, with a sample std. Leave --definition out.")
    tokens = settle_fact("tokens", dump.tokens, stated.tokens)
    values = _join(dump, path, stated.model)
    if not values:
        raise FileError(f"{path.name} has no value of a known stage. Names such as 0.ffn_out, "
                        f"model.layers.0.mlp.down_proj or ffn_out-0 are needed{_listed(dump.left_out)}.")
    rows = max(len(v) for p, v in values.items() if p[1] != "logits") if any(
        p[1] != "logits" for p in values) else len(tokens or values[None, "logits"])
    n_token = rows if tokens is None else len(tokens)
    positions = scope_positions(stated.scope or "all", n_token)
    values = {p: _rows(p, v, positions, n_token, path) for p, v in values.items()}
    widths = _widths(values, path)
    cells = {place: _cell(values, place, n_token, positions) for place in values}
    scopes = () if len(positions) == n_token else (stated.scope or "all",)
    facts = CaptureContract(dump.engine, None, None, widths.get("D"), widths.get("V"), "sample", scopes=scopes,
                            compute=dump.compute, dtype=dump.dtype)
    names = ", ".join(sorted(set(dump.left_out))[:12])
    left = (f"not stages of this tool, left out: {names}",) if names else ()
    unknown = unknown_notes(tokens=tokens, engine=dump.engine, architecture=None, depth=None, compute=dump.compute,
                            device=None)
    return Trace(
        name=path.name, facts=facts, tokens=tuple(Token(i) for i in tokens or ()), cells=cells, values=values,
        notes=(*dump.notes, *left, *unknown), origin={"kind": dump.kind, "imported_from": path.name})


def as_rows(name: str, x: Floats32) -> Floats32:
    """Return [T, W] of an array whose leading dimensions are 1; FileError names it."""
    while x.ndim > 2 and x.shape[0] == 1:
        x = x[0]
    if x.ndim == 1:
        x = x[None]
    if x.ndim != 2 or 0 in x.shape:
        raise FileError(f"{name} has shape {list(x.shape)}; [tokens, width] of one sequence was needed.")
    return x


def _join(dump: Dump, path: Path, model: StatedModel | None) -> dict[Place, Floats32]:
    """Stages by their places: q, k and v joined, gate and up parted, hidden states told apart."""
    values: dict[Place, Floats32] = {}
    paths: dict[Place, Floats32] = {}
    hidden: dict[int, Floats32] = {}
    for part, x in dump.parts.items():
        if isinstance(part, Hidden):
            hidden[part.index] = as_rows(f"hidden state {part.index}", x)
        elif part[1] in JOINED or part[1] in HALVES:
            paths[part] = as_rows(f"layer {part[0]}, {part[1]}", x)
        else:
            values[part] = as_rows(place_text(part), x)
    for (layer, name), x in paths.items():
        if name in HALVES:
            half = x.shape[1] // 2
            for stage, piece in zip(HALVES[name], (x[:, :half], x[:, half:]), strict=True):
                values.setdefault((layer, stage), np.ascontiguousarray(piece))
    for layer in sorted({layer or 0 for layer, name in paths if name == QKV[-1]}):
        found = [paths.get((layer, name)) for name in QKV]
        whole = [x for x in found if x is not None]
        if len(whole) == len(QKV) and len({len(x) for x in whole}) == 1:
            values[layer, "qkv"] = np.concatenate([*(_file_order(x, model) for x in whole[:2]), whole[2]], 1)
    values |= _hidden_places(hidden, path, model)
    return dict(sorted(values.items(), key=lambda item: place_order(item[0])))


def _hidden_places(hidden: Mapping[int, Floats32], path: Path, model: StatedModel | None) -> dict[Place, Floats32]:
    if not hidden:
        return {}
    last = max(hidden)
    if sorted(hidden) != list(range(last + 1)) or last == 0 or (model is not None and last != model.arch.n_layer):
        layers = "one more than it has layers" if model is None else f"{model.arch.n_layer + 1}, from 0,"
        raise FileError(f"{path.name} has the hidden states {sorted(hidden)[:8]} to {last}; a model has {layers} "
                        "all of them. Save every one.")
    return {(None, "embedding"): hidden[0], **{(i - 1, "output"): hidden[i] for i in range(1, last)},
            (None, "final_norm"): hidden[last]}


def _file_order(x_TW: Floats32, model: StatedModel | None) -> Floats32:
    """Put q or k of a module into the rows of a GGUF whose RoPE pairs are adjacent; without a model it is as it is."""
    if model is None or model.arch.rope.pairing != "adjacent" or x_TW.shape[1] % model.arch.head_dim:
        return x_TW
    return x_TW[:, np.asarray(rope_row_order(x_TW.shape[1], model.arch.head_dim, "halves"))]


def _rows(place: Place, x_TW: Floats32, positions: range, n_token: int, path: Path) -> Floats32:
    """The rows of a stage at the positions; the logits' are cut to the last token's."""
    if place[1] == "logits":
        return x_TW[-1:]
    if len(x_TW) == len(positions):
        return x_TW
    if len(x_TW) == 1 and positions.stop == n_token:
        return x_TW
    raise UsageError(f"{path.name}: {place_text(place)} has {len(x_TW)} rows, {len(positions)} of {n_token} tokens "
                     "were expected. Give the --tokens of this dump, or --scope last where it has the last one only.")


def _widths(values: Mapping[Place, Floats32], path: Path) -> dict[str, int]:
    """Width behind each letter; stages of one letter must agree."""
    widths: dict[str, int] = {}
    for place, x in values.items():
        letter = stage_named(place[1]).width
        if len(letter) == 1 and widths.setdefault(letter, x.shape[1]) != x.shape[1]:
            raise FileError(f"{path.name}: {place_text(place)} has width {x.shape[1]}, stages before it of its kind "
                            f"{widths[letter]}. The dump is damaged or of two models; save it again.")
    return widths


def _cell(values: Mapping[Place, Floats32], place: Place, n_token: int, positions: range) -> Cell:
    layer, x_TW = place[0], values[place]
    first = positions.start if len(x_TW) == len(positions) else n_token - len(x_TW)
    factors = [values.get((layer, s)) for s in FACTORS] if place[1] == PRODUCT else [None, None]
    both = factors[0], factors[1]
    if both[0] is None or both[1] is None or not both[0].shape == both[1].shape == x_TW.shape:
        return measure_array(x_TW, first)
    return measure_array(x_TW, first, (both[0], both[1]))


def _listed(names: Sequence[str]) -> str:
    return f"; found {', '.join(ascii(n)[:40] for n in sorted(set(names))[:4])}" if names else ""
