"""Run a traced forward of an opened model, with the witness beside it, and its greedy continuation. No verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from core.arch import read_arch
from core.errors import DeviceError, UsageError
from core.forward import Cache, Model, Tap, forward
from core.lanes import Lane, drive
from core.matmul import COMPUTES
from core.model_file import ModelFile
from core.plants import parse_plant, plant_tap
from core.stages import Place
from core.stats import Cell
from core.tap import chain, no_tap, record
from core.tokenizer import open_tokenizer
from core.trace import Emit, Event, IsCancelled, NextToken

SEED = 0  # of the noise that measures a floor; the forward itself draws nothing


def open_side(
    file: ModelFile, device: str, compute: str = "f32", threads: int | None = None, plant: str | None = None
) -> Side:
    """Hold a file to its architecture and set it on a device; DeviceError, UsageError."""
    if compute not in COMPUTES:
        raise UsageError(f"--compute {compute!r}: this build computes in {', '.join(COMPUTES)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: a number from 1 is needed.")
    if device.startswith("cuda") and not can_use_cuda():
        raise DeviceError(f"{device} is there, but this torch ({torch.__version__}) is built without CUDA or cannot "
                          "start it. Install a CUDA build of torch, or use --device cpu.")
    arch = read_arch(file)
    if plant:
        parse_plant(plant, arch.n_layer)
    return Side(Model(file, arch, torch.device(device)), compute, threads or default_threads(), plant)


def can_use_cuda() -> bool:
    """Say whether this torch is a CUDA build that can start it."""
    return torch.cuda.is_available()


@cache
def default_threads() -> int:
    """Torch's own thread count, as it was before any run set another."""
    return torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class Side:
    """A model with the settings it runs under: what A is, and what B is."""

    model: Model
    compute: str = "f32"
    threads: int | None = None
    plant: str | None = None

    def bug(self) -> Tap:
        """The planted bug as a tap; no_tap where there is none."""
        return plant_tap(self.plant, self.model) if self.plant else no_tap

    def lane(self, tokens: Sequence[int], tap: Tap, cache: Cache | None = None) -> Lane:
        """A run of this side's forward with the tap in it."""
        return Lane(forward(self.model, tokens, tap, cache), self.compute, self.threads)


def run_traced(
    side: Side, tokens: Sequence[int], *, witness: bool, layers: tuple[int, int] | None,
    keep: dict[Place, Tensor] | None, emit: Emit, cancelled: IsCancelled,
) -> tuple[dict[Place, Cell], Tensor, bool | None]:
    """Return the cells, the logits [1, V] of the last token, and whether the untraced logits have the same bits."""
    cells: dict[Place, Cell] = {}

    def seen(place: Place, stats: Cell) -> None:
        cells[place] = stats
        emit(Event("cell", place=place, cell=stats))

    watch = within(layers, record(seen, len(tokens), keep))
    lanes = [side.lane(tokens, chain(side.bug(), watch))]
    if witness:
        lanes.append(side.lane(tokens, side.bug()))
    with verifying(side.model.file):
        logits = drive(lanes, cancelled)
    return cells, logits[0], same_bits(*logits) if witness else None


def continue_greedily(
    side: Side, tokens: Sequence[int], n_token: int, end: Sequence[int], said: Callable[[int], None],
    cancelled: IsCancelled,
) -> list[int]:
    """Return up to n_token next tokens, each the likeliest, through the cache, unwatched; stops after one of end."""
    cache, out, feed = Cache(), [], list(tokens)
    for _ in range(n_token):
        logits = drive([side.lane(feed, side.bug(), cache)], cancelled)[0]
        feed = [int(torch.nan_to_num(logits[0], nan=float("-inf")).argmax())]
        out += feed
        said(feed[0])
        if feed[0] in end:
            break
    return out


def top_tokens(file: ModelFile, logits: Tensor, k: int = 5) -> tuple[NextToken, ...]:
    """Return the k candidates of the largest finite logits [1, V], the lowest id first on a tie."""
    row = torch.nan_to_num(logits[0].float(), nan=float("-inf"), posinf=float("-inf"))
    best = torch.sort(row, descending=True, stable=True)
    tokenizer = open_tokenizer(file)
    pairs = zip(best.indices[:k].tolist(), best.values[:k].tolist(), strict=True)
    return tuple(NextToken(i, tokenizer.token_text(i), logit) for i, logit in pairs if logit != float("-inf"))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two float32 tensors hold the same bits (NaN equals the same NaN)."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def within(layers: tuple[int, int] | None, tap: Tap) -> Tap:
    """Apply the tap in layers A to B - 1 only; whole-model stages always."""
    if layers is None:
        return tap

    def limited(layer: int | None, stage: str, value: Tensor) -> Tensor:
        return tap(layer, stage, value) if layer is None or layers[0] <= layer < layers[1] else value

    return limited


class verifying:
    """Check a file's checksum in a thread while its weights are read; leaving raises a damaged file's FileError."""

    def __init__(self, file: ModelFile) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work = self._pool.submit(file.verify) if file.verify else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._work is not None and kind is None:
            self._work.result()
        self._pool.shutdown(wait=False, cancel_futures=True)
