"""Decode every tensor once, in pieces, and keep what hints are made of: levels of rows, columns, blocks. No verdicts.

Shapes: R rows, C columns, G blocks of a row. Leading dimensions of experts count as rows. Levels are root mean squares
in float32; what is not finite counts as 0 (proofs.py names it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from core.audit.blocks import n_rows
from core.formats.model_file import ModelFile
from core.kernels.cpu.decoding import decode_rows
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.arrays import Floats32
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled, FileError

CHUNK_WEIGHTS = 1 << 20  # decoded at a time
PLAIN_BLOCK = 32         # values of a row that count as one block where the type has none


@dataclass(frozen=True, slots=True)
class LoneBlock:
    """The block that stands out most among its row's and its column's: its peak over theirs, and over the next such.

    row, block: where it is.
    """

    level: float
    gap: float
    row: int
    block: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Levels of one tensor. rows [R], cols [C]: of a matrix; values: of a vector; the other is None.

    lone: the loneliest block above the rest; None where there are too few.
    """

    weight: Weight
    rms: float
    rows: Floats32 | None = field(default=None, repr=False)
    cols: Floats32 | None = field(default=None, repr=False)
    values: Floats32 | None = field(default=None, repr=False)
    lone: LoneBlock | None = None


def profile_file(file: ModelFile, cancelled: IsCancelled) -> Mapping[str, Profile]:
    """Profile every tensor that holds numbers and that a decoder reads; raises Cancelled."""
    found = {}
    for name, weight in file.weights.items():
        if weight.data.size:
            with contextlib.suppress(FileError):  # a type that nothing decodes: its packed bytes were looked at
                found[name] = profile(weight, cancelled)
    return found


def profile(weight: Weight, cancelled: IsCancelled) -> Profile:
    """Profile one tensor; FileError for a type that nothing decodes, Cancelled."""
    if len(weight.shape) < 2:
        values = decode_rows(weight, 0, weight.shape[0] if weight.shape else 1).nan_to_num(0.0, 0.0, 0.0).numpy()
        return Profile(weight, float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))), values=values)
    n_row, n_col = n_rows(weight), weight.shape[-1]
    width = _block_width(weight, n_col)
    step = max(1, CHUNK_WEIGHTS // n_col)
    rows, cols = torch.empty(n_row), torch.zeros(n_col, dtype=torch.float64)
    peaks = torch.empty((n_row, n_col // width)) if width else None
    scratch = torch.empty((min(step, n_row), n_col))
    for start in range(0, n_row, step):
        if cancelled():
            raise Cancelled("the audit was cancelled")
        stop = min(start + step, n_row)
        x = decode_rows(weight, start, stop, out=scratch[:stop - start])
        if not torch.isfinite(x.sum()):
            x.nan_to_num_(0.0, 0.0, 0.0)
        if peaks is not None:
            torch.amax(x.abs_().view(stop - start, -1, width), 2, out=peaks[start:stop])
        x.mul_(x)
        torch.mean(x, 1, out=rows[start:stop])
        cols += x.sum(0, dtype=torch.float64)
    levels_C = (cols / n_row).sqrt().float().numpy()
    lone = _lone_block(peaks) if peaks is not None else None
    return Profile(weight, float((cols.sum() / (n_row * n_col)).sqrt()), rows.sqrt().numpy(), levels_C, lone=lone)


def _block_width(weight: Weight, n_col: int) -> int:
    """Values of a block as this package counts them; 0 where rows are not whole blocks."""
    width = max(QUANTS[weight.quant].block, PLAIN_BLOCK)
    return width if n_col % width == 0 else 0


def _lone_block(peaks: torch.Tensor) -> LoneBlock | None:
    """Find the block whose peak is furthest above the middle of its row's blocks and of its column's."""
    if peaks.numel() < 8:
        return None
    usual = torch.sqrt(peaks.median(1, keepdim=True).values * peaks.median(0, keepdim=True).values)
    level = peaks / usual.clamp(min=1e-12)
    top = torch.topk(level.flatten(), 2)
    first, second = top.values.tolist()
    row, block = divmod(int(top.indices[0]), peaks.shape[1])
    return LoneBlock(first, first / max(second, 1e-12), row, block)
