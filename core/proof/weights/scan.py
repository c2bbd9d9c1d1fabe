"""Read every weight that a run reads, once, and say what is wrong with it by itself: NaN, Inf, zeros, a wrong decoder,
and what core/audit proves of its bytes.

It needs no prompt and no second file. What may be zero and is no fault: single rows (told), rows of the embedding and
the head that no ordinary token has, a bias that is zero in every layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.audit.audit_file import prove_bytes
from core.formats.model_file import ModelFile
from core.kernels.cpu.decoding import decode_rows
from core.model.arch import Arch, stage_weights
from core.model.stages import STAGES, Place
from core.proof.weights.fault import WeightFault, WeightScan
from core.quant.dequantize import decode_by_gguf
from core.quant.types import QUANTS, row_bytes
from core.quant.weight import Weight
from core.system.cancel import IsCancelled
from core.system.errors import Cancelled

Mask = npt.NDArray[np.bool_]

CHUNK_WEIGHTS = 1 << 20   # decoded at a time: 4 MiB of float32
ROWS_TWICE = 64           # of a type, decoded by the second decoder as well; at least one of each tensor
LEAST_RUN = 2             # rows of zeros side by side: one alone is a neuron that was pruned
LEAST_TOKENS = 4          # of the embedding and the head, counting ordinary tokens only
LEAST_ELEMENTS = 16       # of a norm's weight
LEAST_TAIL_BYTES = 64     # zeros at the end of the last tensor: more than any block of real weights ends in
ORDINARY = (1, 6)         # token types of GGUF: normal, byte; the rest may never have been trained
BY_TOKEN = ("embedding", "logits")


@dataclass(frozen=True, slots=True)
class _Read:
    """A weight that the run reads: where first, and where its rows begin there."""

    weight: Weight
    place: Place
    offset: int

    def fault(self, text: str, row: int | None = None) -> WeightFault:
        channel = None if row is None or self.place[1] == "embedding" else self.offset + row
        return WeightFault(self.place, channel, f"{self.weight.name} {text}")

    @property
    def is_vector(self) -> bool:
        return len(self.weight.shape) < 2

    @property
    def n_row(self) -> int:
        return 1 if self.is_vector else int(np.prod(self.weight.shape[:-1]))


def scan_weights(file: ModelFile, arch: Arch, cancelled: IsCancelled) -> WeightScan:
    """Scan the weights that a forward of the file reads, in order of computation; raises Cancelled."""
    reads, ordinary = list(_reads(file, arch)), _ordinary_tokens(file, arch.n_vocab)
    decoded, alone, faults = _decode_twice(reads)
    zero_biases, zero = set[str](), dict[str, Mask]()
    for read in reads:
        if cancelled():
            raise Cancelled("the check was cancelled")
        peak_R = _peaks(read.weight)
        if read.weight.name.endswith(".bias") and not bool(peak_R.any()):
            zero_biases.add(read.weight.name)
            continue
        bad = (~peak_R.isfinite()).nonzero().flatten().tolist()
        faults += [_not_finite(read, bad)] if bad else []
        zero[read.weight.name] = (peak_R == 0).numpy()
    for read in reads:
        if read.weight.name in zero:
            faults += _zeros(read, zero[read.weight.name] & ~_padding(read.weight.name, zero), ordinary)
    faults += _odd_biases(reads, zero_biases) + _tail(reads, faults)
    faults += _proved(file, reads, faults, cancelled)
    return WeightScan(tuple(faults), decoded, alone, _lone_rows(reads, zero))


def _proved(
    file: ModelFile, reads: list[_Read], faults: list[WeightFault], cancelled: IsCancelled
) -> list[WeightFault]:
    """What an audit proves of these weights, where nothing else was found in them."""
    known, told = {read.weight.name: read for read in reads}, {f.sentence.split(" ")[0] for f in faults}
    return [known[proof.tensor].fault(proof.sentence.removeprefix(f"{proof.tensor} "), proof.row)
            for proof in prove_bytes(file, cancelled)
            if proof.tensor is not None and proof.tensor in known and proof.tensor not in told]


def _reads(file: ModelFile, arch: Arch) -> Iterator[_Read]:
    seen = set[str]()
    places = [(i, s.name) for i in range(arch.n_layer) for s in STAGES if not s.whole]
    whole: list[Place] = [(None, s.name) for s in STAGES if s.whole]
    for place in (whole[0], *places, *whole[1:]):
        offset = dict.fromkeys(("weight", "bias"), 0)
        for name in stage_weights(file, arch.layer(place[0]), place[1]):
            weight, part = file.weights[name], name.rpartition(".")[2]
            if name not in seen:
                seen.add(name)
                yield _Read(weight, place, offset.get(part, 0))
            offset[part] = offset.get(part, 0) + (weight.shape[0] if weight.shape else 1)
    factors = file.weights.get("rope_freqs.weight")
    if factors is not None and factors.name not in seen:
        yield _Read(factors, (0, "q_rope"), 0)


def _ordinary_tokens(file: ModelFile, n_vocab: int) -> Mask | None:
    """Which ids an ordinary token of the tokenizer has; None where the file has no tokenizer."""
    types = file.key("tokenizer.ggml.token_type")
    if not isinstance(types, list):
        return None
    known = np.zeros(n_vocab, bool)
    known[:len(types)] = np.isin(types[:n_vocab], ORDINARY)
    return known


def _peaks(weight: Weight) -> Tensor:
    """The largest size in each row, of a vector each element's; NaN where a row holds one."""
    if len(weight.shape) < 2:
        return decode_rows(weight, 0, weight.shape[0] if weight.shape else 1).abs()
    n_row, cols = int(np.prod(weight.shape[:-1])), weight.shape[-1]
    step = max(1, CHUNK_WEIGHTS // cols)
    peaks, scratch = torch.empty(n_row), torch.empty((min(step, n_row), cols))
    for start in range(0, n_row, step):
        stop = min(start + step, n_row)
        part = decode_rows(weight, start, stop, out=scratch[:stop - start])
        torch.amax(part.abs_(), 1, out=peaks[start:stop])
    return peaks


def _not_finite(read: _Read, bad: list[int]) -> WeightFault:
    """Say which row has a NaN or an Inf, and whether it is the scale of a block."""
    weight, row = read.weight, bad[0]
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    if read.is_vector:
        value = float(decode_rows(weight, 0, weight.shape[0])[row])
        return read.fault(f"element {row} is {'NaN' if np.isnan(value) else 'Inf'}{more}", row)
    quant = QUANTS[weight.quant]
    size = row_bytes(quant, weight.shape[-1])
    if quant.scales_at and not quant.whole:
        blocks = np.array(weight.data[row * size:(row + 1) * size]).reshape(-1, quant.block_bytes)
        scales = np.concatenate([blocks[:, at:at + 2].copy().view("<f2") for at in quant.scales_at])
        if not np.isfinite(scales).all():
            kind = "a NaN" if np.isnan(scales).any() else "an Inf"
            return read.fault(f"row {row} has {kind} scale{more}", row)
    values = decode_rows(weight, row, row + 1)[0]
    column = int((~values.isfinite()).nonzero()[0])
    kind = "NaN" if bool(values[column].isnan()) else "Inf"
    return read.fault(f"row {row} is {kind} at column {column}{more}", row)


def _zeros(read: _Read, zero_R: Mask, ordinary: Mask | None) -> list[WeightFault]:
    """Say whether the tensor, or a run of its rows (of a norm's elements), is zeros."""
    if zero_R.all():
        return [read.fault(f"is zeros, all {len(zero_R)} {'elements' if read.is_vector else 'rows'}")]
    least = LEAST_ELEMENTS if read.is_vector else LEAST_RUN
    if read.place[1] == "logits":
        return []  # a head of its own may leave out what is never said, as the demonstration's does
    if read.place[1] in BY_TOKEN and not read.is_vector:
        least, zero_R = LEAST_TOKENS, _of_tokens(zero_R, ordinary)
    runs = [run for run in _runs(zero_R) if run[1] - run[0] >= least]
    if not runs:
        return []
    start, stop = max(runs, key=lambda run: run[1] - run[0])
    more = f", and {len(runs) - 1} more runs" if len(runs) > 1 else ""
    what = "elements" if read.is_vector else "rows"
    return [read.fault(f"{what} {start} to {stop - 1} are zeros{more}", start)]


def _runs(zero_R: Mask) -> list[tuple[int, int]]:
    """Where zeros stand side by side: start and stop of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], zero_R, [False])).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _lone_rows(reads: list[_Read], zero: Mapping[str, Mask]) -> str:
    """Name the single rows of zeros: no proof of a fault, and what a person who looks for one wants to know."""
    matrices = [r.weight.name for r in reads if not r.is_vector and r.place[1] not in BY_TOKEN]
    judged = [(name, zero[name] & ~_padding(name, zero)) for name in matrices if name in zero]
    found = [(name, start) for name, zero_R in judged for start, stop in _runs(zero_R) if stop - start < LEAST_RUN]
    if not found:
        return ""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"a single row of zeros, which may be a pruned neuron: {found[0][0]} row {found[0][1]}{more}"


def _padding(name: str, zero: Mapping[str, Mask]) -> Mask:
    """The rows at the end that gate and up both have as zeros: a feed-forward filled up to a size that kernels like."""
    other = name.replace("ffn_gate", "ffn_up") if "ffn_gate" in name else name.replace("ffn_up", "ffn_gate")
    found = np.zeros(len(zero[name]), bool)
    if other != name and other in zero and len(zero[other]) == len(found):
        filled = np.flatnonzero(~(zero[name] & zero[other]))
        found[int(filled[-1]) + 1 if len(filled) else len(found):] = True
    return found


def _of_tokens(zero_R: Mask, ordinary: Mask | None) -> Mask:
    """The zero rows that count: of ordinary tokens; without a tokenizer all but padding, less than half, at the end."""
    if ordinary is not None and len(ordinary) == len(zero_R):
        return zero_R & ordinary
    last = int(np.flatnonzero(~zero_R)[-1]) + 1
    return zero_R[:last] if last > len(zero_R) // 2 else zero_R


def _odd_biases(reads: list[_Read], zero: set[str]) -> list[WeightFault]:
    """Biases of zeros, where other layers' same bias is not: a model without it has zeros in all of them."""
    kinds = defaultdict[str, list[_Read]](list)
    for read in reads:
        if read.weight.name.endswith(".bias"):
            kinds[read.weight.name.split(".", 2)[-1]].append(read)
    return [read.fault("is zeros, and those of other layers are not") for same in kinds.values() for read in same
            if read.weight.name in zero and not all(each.weight.name in zero for each in same)]


def _tail(reads: list[_Read], faults: list[WeightFault]) -> list[WeightFault]:
    """The file's last tensor, where it ends in zeros that are less than a row."""
    last = max(reads, key=lambda read: read.weight.data.ctypes.data)
    if last.place[1] in BY_TOKEN or last.weight.name.endswith(".bias") or any(
            fault.sentence.startswith(f"{last.weight.name} ") for fault in faults):
        return []
    data = np.asarray(last.weight.data[-(1 << 20):])
    filled = np.flatnonzero(data)
    n_zero = len(data) - (int(filled[-1]) + 1 if len(filled) else 0)
    if n_zero < LEAST_TAIL_BYTES:
        return []
    return [last.fault(f"ends in {n_zero} bytes of zeros, as the file does: it was not written to its end",
                       last.n_row - 1)]


def _decode_twice(reads: list[_Read]) -> tuple[dict[str, int], tuple[str, ...], list[WeightFault]]:
    """Decode rows of each type by both decoders: how many agree of which type, types with one decoder, who differs."""
    kinds = defaultdict[str, list[_Read]](list)
    for read in reads:
        kinds[read.weight.quant].append(read)
    decoded, alone, faults = dict[str, int](), list[str](), list[WeightFault]()
    for quant, same in kinds.items():
        rows = [(read, row) for read in same for row in _spread(read.n_row, -(-ROWS_TWICE // len(same)))]
        pairs = ((read, row, decode_by_gguf(read.weight, row)) for read, row in rows)
        wrong = next((fault for read, row, other in pairs if (fault := _differs(read, row, other))), None)
        if decode_by_gguf(same[0].weight, 0) is None:
            alone.append(quant)
        elif wrong is not None:
            faults.append(wrong)
        else:
            decoded[quant] = len(rows)
    return decoded, tuple(alone), faults


def _spread(n_row: int, wanted: int) -> list[int]:
    """That many rows, the first and the last among them, evenly apart; all where there are no more."""
    return [int(row) for row in np.unique(np.linspace(0, n_row - 1, min(wanted, n_row)).round())]


def _differs(read: _Read, row: int, other: Tensor | None) -> WeightFault | None:
    """The fault of a decoder whose row is not what the other makes of it."""
    if other is None:
        return None
    weight = read.weight
    own = decode_rows(weight, 0, weight.shape[0]) if read.is_vector else decode_rows(weight, row, row + 1)[0]
    unlike = (own != other) & ~(own.isnan() & other.isnan())
    if not bool(unlike.any()):
        return None
    at = int(unlike.nonzero()[0])
    return WeightFault(read.place, read.offset + (at if read.is_vector else row),
                       f"{weight.quant} is decoded wrongly: {weight.name} row {row}, column {at} is "
                       f"{float(own[at]):.6g} here and {float(other[at]):.6g} by a second decoder (gguf-py)")
