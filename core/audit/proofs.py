"""Rules that need no judgement: what no writer of a file writes, and what no model has. Read from packed bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from core.audit.blocks import BlockScan, Spots, twins
from core.audit.finding import Strength
from core.audit.guarantees import GUARANTEES, Mask
from core.audit.rule import Rule, Seen, Spot, layer_of, role_of
from core.quant.types import QUANTS

LEAST_COLUMNS = 16        # a row of zeros of fewer is no fault: kernels of a convolution, gates of a few heads
KEPT_BY = 1e-3            # of a type's blocks at most, and
MOST_LACKING = (3, 1e-6)  # so many, or this part of them, may lack their extremes: else its writer promises none
SMALL_VECTOR = 8          # two of these may be alike by chance
# a row for each token, or position: one that no text has may be zeros, and one such matrix may be written twice
BY_TOKEN = ("token_embd", "output", "per_layer_token_embd", "position_embd", "token_types", "nextn.embed_tokens",
            "nextn.shared_head_head")


def is_by_token(name: str) -> bool:
    """Whether a tensor is one of BY_TOKEN."""
    return role_of(name).rpartition(".")[0] in BY_TOKEN


def _spot(scan: BlockScan, spots: Spots) -> Spot:
    row, block = scan.place(spots.first)
    where = [f"row {row}"] if row is not None else []
    if block is not None:
        where.append(f"{_unit(scan)} {block}")
    more = f", and {spots.count - 1} more" if spots.count > 1 else ""
    return Spot(scan.weight.name, spots.count, row, block, {"where": ", ".join(where), "more": more,
                                                            "type": scan.weight.quant})


def _unit(scan: BlockScan) -> str:
    plain = QUANTS[scan.weight.quant].is_plain
    return "block" if not plain else "column" if len(scan.weight.shape) > 1 else "element"


def _not_finite(seen: Seen) -> Iterator[Spot]:
    for scan in seen.blocks.values():
        if scan.not_finite.count:
            spot = _spot(scan, scan.not_finite)
            what = "scale" if _unit(scan) == "block" else "value"
            yield Spot(spot.tensor, spot.measured, spot.row, spot.block, {**spot.words, "what": what})


def _negative(seen: Seen) -> Iterator[Spot]:
    yield from (_spot(scan, scan.negative) for scan in seen.blocks.values() if scan.negative.count)


def _lacking(seen: Seen) -> Iterator[Spot]:
    kinds = defaultdict[str, list[BlockScan]](list)
    for scan in seen.blocks.values():
        if scan.weight.quant in GUARANTEES and GUARANTEES[scan.weight.quant].lacks is not None:
            kinds[scan.weight.quant].append(scan)
    for same in kinds.values():
        n, n_block = sum(s.lacking.count for s in same), sum(s.n_block for s in same)
        if n <= KEPT_BY * n_block and n <= max(MOST_LACKING[0], MOST_LACKING[1] * n_block):
            yield from (_spot(scan, scan.lacking) for scan in same if scan.lacking.count)


def _zeros(seen: Seen) -> Iterator[Spot]:
    for name, scan in seen.blocks.items():
        if scan.zero_R is None or not scan.zero_R.all() or is_by_token(name) or not scan.weight.data.size:
            continue
        if len(scan.weight.shape) < 2 and not _is_alone(seen, name):
            continue
        yield Spot(name, 1.0)


def _is_alone(seen: Seen, name: str) -> bool:
    """Whether a vector of zeros is so in its layer only: a model without that bias has zeros in all."""
    if name.endswith(".weight") and scan_size(seen.blocks[name]) > SMALL_VECTOR and "norm" in name:
        return True
    same = [s for n, s in seen.blocks.items() if role_of(n) == role_of(name) and layer_of(n) is not None]
    return len(same) > 1 and not all(s.zero_R is not None and s.zero_R.all() for s in same)


def scan_size(scan: BlockScan) -> int:
    """Values of a tensor."""
    return int(np.prod(scan.weight.shape)) if scan.weight.shape else 1


def _row_runs(seen: Seen) -> Iterator[Spot]:
    for name, zero_R in _zero_rows(seen):
        found = np.flatnonzero(zero_R & ~alone(zero_R))
        if len(found):
            yield Spot(name, float(len(found)), int(found[0]), None, {"rows": _runs(found)})


def _lone_rows(seen: Seen) -> Iterator[Spot]:
    """A single row, a neuron that was pruned perhaps; not where another layer has it, too: the model's own."""
    for name, zero_R in _zero_rows(seen):
        others = [s.zero_R for n, s in seen.blocks.items() if n != name and role_of(n) == role_of(name)
                  and s.zero_R is not None and len(s.zero_R) == len(zero_R)]
        found = np.flatnonzero(alone(zero_R) & ~np.any(others, 0) if others else alone(zero_R))
        if len(found):
            yield Spot(name, float(len(found)), int(found[0]), None, {"rows": _runs(found)})


def _zero_rows(seen: Seen) -> Iterator[tuple[str, Mask]]:
    """Each matrix with rows of zeros that are no padding, and which."""
    for name, scan in seen.blocks.items():
        shape, zero_R = scan.weight.shape, scan.zero_R
        if zero_R is None or zero_R.all() or len(shape) < 2 or shape[-1] < LEAST_COLUMNS or is_by_token(name):
            continue
        if zero_R.any():
            yield name, zero_R & ~_padding(seen, name, zero_R)


def alone(mask: Mask) -> Mask:
    """Those without a neighbour."""
    return np.asarray(mask & ~np.r_[False, mask[:-1]] & ~np.r_[mask[1:], False])


def _padding(seen: Seen, name: str, zero_R: Mask) -> Mask:
    """The rows at the end that gate and up both have as zeros: a feed-forward filled up to a size that kernels like."""
    other = name.replace("ffn_gate", "ffn_up") if "ffn_gate" in name else name.replace("ffn_up", "ffn_gate")
    padding = np.zeros(len(zero_R), bool)
    if other != name and other in seen.blocks:
        theirs = seen.blocks[other].zero_R
        if theirs is not None and len(theirs) == len(zero_R):
            filled = np.flatnonzero(~(zero_R & theirs))
            padding[int(filled[-1]) + 1 if len(filled) else 0:] = True
    return padding


def _runs(found: np.ndarray) -> str:
    """The first run of these rows in words, the rest counted."""
    breaks = np.flatnonzero(np.diff(found) > 1)
    end = int(breaks[0]) if len(breaks) else len(found) - 1
    first, last, more = int(found[0]), int(found[end]), len(found) - end - 1
    text = f"row {first} is" if first == last else f"rows {first} to {last} are"
    return f"{text} zeros" + (f", and {more} more" if more else "")


def _twins(seen: Seen) -> Iterator[Spot]:
    for name, other in twins(seen.blocks):
        small = len(seen.file.weights[name].shape) < 2 and scan_size(seen.blocks[name]) <= SMALL_VECTOR
        if not small and not (is_by_token(name) and is_by_token(other)):
            yield Spot(name, 1.0, words={"other": other})


BYTE_RULES = (
    Rule("not_finite", Strength.PROOF, _not_finite, "{tensor} {where}: a {what} is NaN or Inf{more}",
         "every scale and every value of a weight is finite"),
    Rule("negative_scale", Strength.PROOF, _negative, "{tensor} {where}: a scale is negative{more}",
         "a writer of this type writes no scale below 0"),
    Rule("no_extreme", Strength.PROOF, _lacking, "{tensor} {where}: nothing stands at {type}'s extreme level{more}",
         "a writer of this type puts each block's largest value, or scale, at the extreme level, and all but a few "
         "blocks of this file keep to it"),
    Rule("zeros", Strength.PROOF, _zeros, "{tensor} is zeros", "no tensor that a model reads is zeros"),
    Rule("zero_rows", Strength.PROOF, _row_runs, "{tensor} {rows}", "no rows of a weight, side by side, are zeros"),
    Rule("zero_row", Strength.HINT, _lone_rows, "{tensor} {rows}",
         "no single row of a weight is zeros, but one that is so in other layers or was pruned"),
    Rule("twins", Strength.PROOF, _twins, "{tensor} and {other} are the same, byte for byte",
         "no two weights of a model are the same"),
)
