"""Walk the packed blocks of every tensor once, nothing decoded, and note what no writer writes. No verdicts.

Shapes: R rows of G blocks each; leading dimensions of experts count as rows. Blocks of a `whole` type know no rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from core.audit.guarantees import GUARANTEES, PLAIN, Guarantee, Mask, half_bits
from core.formats.model_file import ModelFile
from core.quant.types import QUANTS, Quant, row_bytes
from core.quant.weight import Weight
from core.system.arrays import Bytes
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled

CHUNK_BYTES = 1 << 18  # looked at at once: stays near the core


@dataclass(frozen=True, slots=True)
class Spots:
    """How many blocks (values, of a plain type) have a fault, and the first of them, counted through the tensor."""

    count: int = 0
    first: int = 0

    def plus(self, mask: Mask, start: int) -> Spots:
        """With those of a chunk that begins at start."""
        count = int(np.count_nonzero(mask))
        if not count:
            return self
        return Spots(self.count + count, self.first if self.count else start + int(mask.argmax()))


@dataclass(frozen=True, slots=True)
class BlockScan:
    """What the bytes of a tensor show. n_block counts values for a plain type, as Spots do.

    zero_R: which rows hold nothing but zeros; of a vector, one row; None where the packed bytes do not tell.
    """

    weight: Weight
    n_block: int = 0
    not_finite: Spots = Spots()
    negative: Spots = Spots()
    lacking: Spots = Spots()
    zero_R: Mask | None = field(default=None, repr=False)

    def place(self, block: int) -> tuple[int | None, int | None]:
        """Row, and block (column, of a plain type) in that row; of a `whole` type the block of the tensor alone."""
        quant = QUANTS[self.weight.quant]
        if quant.whole:
            return None, block
        n = row_blocks(self.weight)
        return divmod(block, n) if len(self.weight.shape) > 1 else (None, block)


def row_blocks(weight: Weight) -> int:
    """Blocks of one row (values, of a plain type)."""
    quant, cols = QUANTS[weight.quant], weight.shape[-1] if weight.shape else 1
    return max(1, row_bytes(quant, cols) // quant.block_bytes)


def n_rows(weight: Weight) -> int:
    """Rows of a tensor; a vector is one."""
    return prod(weight.shape[:-1]) if len(weight.shape) > 1 else 1


def scan_blocks(file: ModelFile, cancelled: IsCancelled) -> dict[str, BlockScan]:
    """Look at every tensor, one after the other; raises Cancelled."""
    return {name: scan_tensor(weight, cancelled) for name, weight in file.weights.items()}


def scan_tensor(weight: Weight, cancelled: IsCancelled) -> BlockScan:
    """Look at one tensor; raises Cancelled."""
    quant = QUANTS[weight.quant]
    if not weight.data.size:
        return BlockScan(weight)
    if quant.name in PLAIN:
        return _scan_plain(weight, cancelled)
    if quant.is_plain:
        return BlockScan(weight)
    rule = GUARANTEES.get(quant.name, Guarantee())
    blocks = weight.data[quant.head_bytes:].reshape(-1, quant.block_bytes)
    not_finite, negative, lacking = Spots(), Spots(), Spots()
    zero_B = np.zeros(len(blocks), bool)
    for start, raw in _chunks(blocks, quant, cancelled):
        scales = {at: half_bits(raw, at) for at in quant.scales_at}
        zero = np.ones(len(raw), bool)
        bad = ~zero
        for bits in scales.values():
            bad |= (bits & 0x7C00) == 0x7C00
            zero &= (bits & 0x7FFF) == 0
        below = np.zeros(len(raw), bool)
        for at in rule.positive:
            below |= (scales[at] > 0x8000) & (scales[at] <= 0xFC00)
        not_finite, negative = not_finite.plus(bad, start), negative.plus(below, start)
        if rule.lacks is not None:
            lacking = lacking.plus(rule.lacks(raw) & ~bad, start)
        zero_B[start:start + len(raw)] = zero
    zero_R: Mask | None = None
    if quant.scales_at and not quant.whole:
        zero_R = np.asarray(zero_B.reshape(n_rows(weight), -1).all(1))
    return BlockScan(weight, len(blocks), not_finite, negative, lacking, zero_R)


def _chunks(blocks: Bytes, quant: Quant, cancelled: IsCancelled) -> Iterator[tuple[int, Bytes]]:
    step = max(1, CHUNK_BYTES // quant.block_bytes)
    for start in range(0, len(blocks), step):
        if cancelled():
            raise Cancelled("the audit was cancelled")
        yield start, blocks[start:start + step]


def _scan_plain(weight: Weight, cancelled: IsCancelled) -> BlockScan:
    kind, exponent, size = PLAIN[weight.quant]
    rows = weight.data.view(kind).reshape(n_rows(weight), -1)
    not_finite, zero_R = Spots(), np.zeros(len(rows), bool)
    step = max(1, CHUNK_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, len(rows), step):
        if cancelled():
            raise Cancelled("the audit was cancelled")
        part = rows[start:start + step]
        zero_R[start:start + step] = ~(part & size).any(1)
        not_finite = not_finite.plus(((part & exponent) == exponent).ravel(), start * rows.shape[1])
    return BlockScan(weight, rows.size, not_finite, zero_R=zero_R)


def twins(scans: Mapping[str, BlockScan]) -> Iterator[tuple[str, str]]:
    """Yield each tensor of which another one has the same type, shape and bytes, with the first such other."""
    groups: dict[object, list[Weight]] = {}
    for scan in scans.values():
        w = scan.weight
        groups.setdefault((w.quant, w.shape, w.data[:256].tobytes(), w.data[-256:].tobytes()), []).append(w)
    for same in groups.values():
        varied = [w for w in same if not _is_constant(w)] if len(same) > 1 else []
        for weight in varied:
            other = next((w for w in varied if w is not weight and np.array_equal(w.data, weight.data)), None)
            if other is not None:
                yield weight.name, other.name


def _is_constant(weight: Weight) -> bool:
    """Whether its values are all alike, as fresh norms and biases are: its bytes repeat with its block."""
    size = QUANTS[weight.quant].block_bytes
    body = weight.data[QUANTS[weight.quant].head_bytes:]
    return len(body) <= size or np.array_equal(body[size:], body[:-size])
