"""Read a folder of APRT stage files (`apr trace --save-tensor`): layer-N/<stage>.bin, float32 values without a shape.

A file: b"APRT", u32 layer (0xFFFFFFFF: whole model), u32 number of values, the values; little-endian. How many tokens
it holds stands nowhere; it follows from --tokens (and --scope, where a dump has the last token only). Without --tokens
the statistics are those of the values as they lie, at one scope.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.model.stages import (
    FACTORS,
    PRODUCT,
    STAGES,
    UNKNOWN_SCOPE,
    Place,
    place_order,
    place_text,
    scope_positions,
    stage_named,
)
from core.sources.imports.stated_facts import Stated, unknown_notes
from core.system.arrays import Floats32
from core.system.errors import FileError, UsageError
from core.system.limits import STAGE_BYTES
from core.trace.measure import measure_array
from core.trace.record import CaptureContract, Token, Trace
from core.trace.stats import Cell, ScopeStats

MAGIC, HEADER_BYTES, WHOLE_MODEL = b"APRT", 12, 0xFFFFFFFF
# file's stem -> our stage; of two files for one stage the later row is taken
STAGE_FILES = {stem: stage.name for stage in STAGES for stem in stage.aprt or (stage.name,)}
KEPT_BYTES = 2 << 30  # values above this are measured and not kept
_LAYER_FOLDER = re.compile(r"layer-([0-9]{1,6})$")


@dataclass(frozen=True, slots=True)
class _StageFile:
    path: Path
    place: Place
    count: int

    def values(self) -> Floats32:
        return np.fromfile(self.path, "<f4", self.count, offset=HEADER_BYTES).astype(np.float32, copy=False)


def read_aprt_folder(folder: Path, stated: Stated) -> Trace:
    """Measure every stage file. FileError names the file; UsageError where --tokens or --scope do not fit."""
    if stated.definition not in (None, "sample"):
        raise UsageError("These statistics are computed here, with a sample std. Leave --definition out.")
    files, notes = _find(folder)
    if stated.tokens is None:
        cells, values, widths = _flat(files, stated), None, {}
        scopes: tuple[str, ...] = (stated.scope or UNKNOWN_SCOPE,)
    else:
        positions = scope_positions(stated.scope or "all", len(stated.tokens))
        shapes = _shapes(files, positions, len(stated.tokens))
        widths = _widths(files, shapes)
        cells, values = _measured(files, shapes)
        scopes = () if len(positions) == len(stated.tokens) else (stated.scope or "all",)
        notes += (f"each value's shape, [{len(positions)}, width], follows from the tokens; the files do not say it",)
    facts = CaptureContract("aprender", None, None, widths.get("D"), widths.get("V"), "sample", scopes=scopes,
                            dtype="f32")
    unknown = unknown_notes(
        scope=stated.scope or stated.tokens, tokens=stated.tokens, architecture=None, depth=None, compute=None,
        device=None,
    )
    return Trace(
        name=folder.name, facts=facts, tokens=tuple(Token(id) for id in stated.tokens or ()), cells=cells,
        values=values,
        notes=(*notes, *unknown), origin={"kind": "APRT stage files", "imported_from": folder.name},
    )


def _find(folder: Path) -> tuple[dict[Place, _StageFile], tuple[str, ...]]:
    files: dict[Place, _StageFile] = {}
    rank = {stem: i for i, stem in enumerate(STAGE_FILES)}
    left_out: set[str] = set()
    for layer, path in sorted(_stage_paths(folder), key=lambda found: rank.get(found[1].stem, -1)):
        stage = STAGE_FILES.get(path.stem)
        header_layer, count = _header(path)
        if stage is None:
            left_out.add(path.stem)
            continue
        whole = stage_named(stage).whole
        if header_layer != layer and not (whole and {header_layer, layer} <= {0, None}):
            raise _bad(path, f"its header says {_said(header_layer)}, its folder {_said(layer)}")
        files[None if whole else layer, stage] = _StageFile(path, (None if whole else layer, stage), count)
    if not files:
        raise FileError(
            f"{folder.name} has no APRT stage file (layer-0/attn_norm.bin ...). Give a folder that --save-tensor wrote."
        )
    before_bias = sorted(f.place[0] or 0 for f in files.values() if f.path.stem == "qkv_matmul")
    notes = [f"not stages of this tool, left out: {', '.join(sorted(left_out))}"] if left_out else []
    notes += [f"qkv is before its bias (no qkv_bias file) in layers {before_bias}"] if before_bias else []
    return dict(sorted(files.items(), key=lambda item: place_order(item[0]))), tuple(notes)


def _stage_paths(folder: Path) -> Iterator[tuple[int | None, Path]]:
    try:
        for entry in sorted(folder.iterdir()):
            inside = _LAYER_FOLDER.match(entry.name)
            if entry.is_dir() and inside:
                yield from ((int(inside[1]), path) for path in sorted(entry.glob("*.bin")) if path.is_file())
            elif entry.suffix == ".bin" and entry.is_file():
                yield None, entry
    except OSError as error:
        raise FileError(f"{folder.name} could not be read: {error.strerror}.") from error


def _header(path: Path) -> tuple[int | None, int]:
    """Return the layer and the number of values; the file must be exactly as long as they say."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise FileError(f"{path.name} could not be read: {error.strerror}.") from error
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        raise _bad(path, f"it begins with {data[:4]!r}, not with APRT")
    layer, count = struct.unpack("<II", data[4:])
    if size > STAGE_BYTES:
        raise _bad(path, f"it has {size} bytes, over {STAGE_BYTES}")
    if size != HEADER_BYTES + 4 * count or count == 0:
        raise _bad(path, f"{count} values need {HEADER_BYTES + 4 * count} bytes and it has {size}")
    return None if layer == WHOLE_MODEL else layer, count


def _flat(files: Mapping[Place, _StageFile], stated: Stated) -> dict[Place, Cell]:
    cells: dict[Place, Cell] = {}
    for place, file in files.items():
        taken = measure_array(file.values()[None]).at("all")
        assert taken is not None
        scope = "last" if place[1] == "logits" else stated.scope or UNKNOWN_SCOPE
        unplaced = {"peak_token": None, "peak_channel": None, "nan_token": None, "nan_channel": None}
        cells[place] = ScopeStats({scope: replace(taken, **unplaced)})
    return cells


def _shapes(files: Mapping[Place, _StageFile], positions: range, n_token: int) -> dict[Place, tuple[int, int]]:
    """Infer (rows, position of row 0) of each file. Logits are the last token's, and so may the final norm be."""
    shapes: dict[Place, tuple[int, int]] = {}
    width_d = None  # of the residual stream
    for place, file in files.items():
        rows, first = len(positions), positions.start
        if place[1] == "logits" or (place[1] == "final_norm" and file.count == width_d):
            rows, first = 1, n_token - 1
        if file.count % rows:
            raise UsageError(
                f"{place_text(place)} has {file.count} values, which {rows} tokens do not divide. Give the tokens of "
                "this dump, or --scope last where it has the last one only."
            )
        if stage_named(place[1]).width == "D" and width_d is None:
            width_d = file.count // rows
        shapes[place] = (rows, first)
    return shapes


def _widths(files: Mapping[Place, _StageFile], shapes: Mapping[Place, tuple[int, int]]) -> dict[str, int]:
    """Return the width behind each letter; stages of one letter must agree, and q, k and v must make qkv."""
    widths: dict[str, int] = {}
    for place, file in files.items():
        letter, width = stage_named(place[1]).width, file.count // shapes[place][0]
        if widths.setdefault(letter, width) != width:
            raise _bad(file.path, f"its width is {width}, where the stages before it have {widths[letter]}")
    heads = [widths.get(letter) for letter in "QHK"]
    if None not in heads and heads[0] != (heads[1] or 0) + 2 * (heads[2] or 0):
        raise FileError(f"qkv has width {heads[0]}, but q and twice k make {heads[1]} + 2 x {heads[2]}. Dump it again.")
    return widths


def _measured(
    files: Mapping[Place, _StageFile], shapes: Mapping[Place, tuple[int, int]],
) -> tuple[dict[Place, Cell], dict[Place, Floats32] | None]:
    """Measure each file; keep the values where they are not too many."""
    keeps = sum(4 * file.count for file in files.values()) <= KEPT_BYTES
    cells, values = dict[Place, Cell](), dict[Place, Floats32]()
    factors: dict[Place, Floats32] = {}  # of PRODUCT, until it comes
    for place, file in files.items():
        layer, stage = place
        rows, first = shapes[place]
        x_TW = file.values().reshape(rows, -1)
        if stage in FACTORS:
            factors[place] = x_TW
        left, right = (factors.pop((layer, s), None) if stage == PRODUCT else None for s in FACTORS)
        cells[place] = measure_array(x_TW, first, None if left is None or right is None else (left, right))
        if keeps:
            values[place] = x_TW
    return cells, values if keeps else None


def _said(layer: int | None) -> str:
    return "the whole model" if layer is None else f"layer {layer}"


def _bad(path: Path, what: str) -> FileError:
    return FileError(f"{path.parent.name}/{path.name} is not a whole APRT stage file: {what}. Save the tensors again.")
