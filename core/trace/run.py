"""Run a traced forward of an opened model, with the witness beside it, and its greedy continuation. No verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch
from torch import Tensor

from core.faults.value_faults import parse_value_fault, value_fault_tap
from core.formats.model_file import ModelFile
from core.model.arch import Arch, read_arch
from core.model.forward import forward
from core.model.gpu_weights import open_resident
from core.model.graph_decode import decode_by_graph, likeliest
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Cache, Model, Resume, Tap
from core.model.stages import Place
from core.quant.activations import COMPUTES, SMALL_BLOCK
from core.quant.cache_types import KvTypes, read_kv_types
from core.system.cancel import IsCancelled
from core.system.errors import DeviceError, UsageError
from core.system.gpu_errors import why_unusable
from core.text.tokenizer import Tokenizer, open_tokenizer
from core.trace.events import CellMeasured, Emit
from core.trace.record import NextToken
from core.trace.request import Source
from core.trace.stats import Cell
from core.trace.taps import chain, no_tap, record

SEED = 0  # of the noise that measures a floor; the forward itself draws nothing


def open_side(
    file: ModelFile, device: str, compute: str = "f32", threads: int | None = None, plant: str | None = None
) -> Side:
    """Set a file of which nothing is read yet on a device; FileError, and the errors of place_model."""
    settings = Source(file.path, compute=compute, device=device, threads=threads, plant=plant)
    return place_model(file, read_arch(file), open_tokenizer(file), settings)


def place_model(file: ModelFile, arch: Arch, tokenizer: Tokenizer, settings: Source) -> Side:
    """Set an opened file on the settings' device, which is no longer auto; DeviceError, UsageError."""
    if settings.compute not in COMPUTES:
        raise UsageError(f"--compute {settings.compute!r}: this build computes in {', '.join(COMPUTES)}.")
    if settings.threads is not None and settings.threads < 1:
        raise UsageError(f"--threads {settings.threads}: a number from 1 is needed.")
    why_not = why_unusable(settings.device)
    if why_not:
        raise DeviceError(f"{settings.device} is there, but {why_not}. Use --device cpu.")
    if settings.plant:
        parse_value_fault(settings.plant, arch.n_layer)
    place = torch.device(settings.device)
    if place.type == "cuda" and COMPUTES[settings.compute].cpu_only:
        raise UsageError(f"--compute {settings.compute} runs on the CPU only. Use --device cpu.")
    if place.type == "cuda":  # what float32 promises, whatever the environment has set
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    model = Model(file, arch, place, resident=open_resident(place), kv=fitting_types(arch, settings))
    return Side(model, tokenizer, settings.compute, settings.threads or default_threads(), settings.plant)


def fitting_types(arch: Arch, settings: Source) -> KvTypes:
    """How the settings keep keys and values; UsageError where this model's cannot be kept so here."""
    kv = read_kv_types(settings.cache)
    kept = [layer.attention for layer in arch.layers if layer.attention is not None]
    why_not = (
        "runs on the CPU only: use --device cpu" if torch.device(settings.device).type == "cuda" else
        "rounds keys and values, and this model keeps a latent" if any(a.mla for a in kept) else
        f"rounds blocks of {SMALL_BLOCK}, of which {a.width} channels of a head are no whole number"
        if (a := next((a for a in kept if kv.blocks and a.width % SMALL_BLOCK), None)) else None)
    if not kv.is_exact and why_not:
        raise UsageError(f"cache={settings.cache} {why_not}.")
    return kv


@cache
def default_threads() -> int:
    """Torch's own thread count, as it was before any run set another."""
    return torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class Side:
    """A model with the settings it runs under: what A is, and what B is."""

    model: Model
    tokenizer: Tokenizer
    compute: str = "f32"
    threads: int | None = None
    plant: str | None = None

    def bug(self, whole: bool = True) -> Tap:
        """The planted bug as a tap; no_tap where there is none. whole: it is fed a whole prompt, and must change it."""
        return value_fault_tap(self.plant, self.model, whole) if self.plant else no_tap

    def forward_run(
        self, tokens: Sequence[int] | Tensor, tap: Tap, cache: Cache | None = None, *, plain: bool = False,
        resume: Resume | None = None,
    ) -> ForwardRun:
        """A run of this side's forward with the tap in it, behind the rounding that its compute keeps stages in."""
        compute = COMPUTES[self.compute]
        if compute.kept is not None:
            tap = chain(lambda layer, stage, value: compute.keep(value), tap)
        steps = forward(self.model, tokens, tap, cache, resume)
        return ForwardRun(steps, self.compute, self.threads, plain, self.model.device)


def run_traced(
    side: Side, tokens: Sequence[int], *, witness: bool, layers: tuple[int, int] | None,
    keep: dict[Place, Tensor] | None, emit: Emit, cancelled: IsCancelled,
) -> tuple[dict[Place, Cell], Tensor, bool | None]:
    """Return the cells, the logits [1, V] of the last token, and whether the untraced logits have the same bits."""
    cells: dict[Place, Cell] = {}

    def on_cell(place: Place, stats: Cell) -> None:
        cells[place] = stats
        emit(CellMeasured(place, stats))

    watch = within(layers, _recorder(side)(on_cell, len(tokens), keep))
    runs = [side.forward_run(tokens, chain(side.bug(), watch))]
    if witness:
        runs.append(side.forward_run(tokens, side.bug()))
    with checksum_beside(side.model.file):
        logits = run_lockstep(runs, cancelled)
    return cells, logits[0], same_bits(*logits) if witness else None


def _recorder(side: Side) -> Callable[..., Tap]:
    """The watching tap of the side's device."""
    if side.model.resident is None:
        return record
    from core.trace.gpu_tap import record_on_device

    return record_on_device


def continue_greedily(
    side: Side, tokens: Sequence[int], n_token: int, end: Sequence[int], on_message: Callable[[int], None],
    cancelled: IsCancelled,
) -> list[int]:
    """Return up to n_token next tokens, each the likeliest, through the cache, unwatched; stops after one of end."""
    if side.model.resident is not None and not side.plant and side.model.arch.is_usual:
        steps = decode_by_graph(
            side.model, lambda ids, cache: side.forward_run(ids, no_tap, cache), tokens, n_token, cancelled)
    else:
        steps = _decode(side, tokens, cancelled)
    out: list[int] = []
    for token in islice(steps, n_token):
        out.append(token)
        on_message(token)
        if token in end:
            break
    return out


def _decode(side: Side, tokens: Sequence[int], cancelled: IsCancelled) -> Iterator[int]:
    """Yield the likeliest next token, again and again, through the cache."""
    cache, feed, bug = Cache(), list(tokens), side.bug(whole=False)
    while True:
        logits = run_lockstep([side.forward_run(feed, bug, cache)], cancelled)[0]
        feed = [int(likeliest(logits))]
        yield feed[0]


def top_tokens(tokenizer: Tokenizer, logits: Tensor, k: int = 5) -> tuple[NextToken, ...]:
    """Return the k candidates of the largest finite logits [1, V], the lowest id first on a tie."""
    row = torch.nan_to_num(logits[0].float(), nan=float("-inf"), posinf=float("-inf"))
    best = torch.sort(row, descending=True, stable=True)
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


@contextmanager
def checksum_beside(file: ModelFile) -> Iterator[None]:
    """Take a file's checksum in a thread while its weights are read; leaving raises a damaged file's FileError."""
    pool = ThreadPoolExecutor(1)
    try:
        work = pool.submit(file.verify) if file.verify else None
        yield
        if work is not None:
            work.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
