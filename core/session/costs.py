"""Measure what a quantised file costs: KL between two sources over a text, and the bill of its tensors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.session.prepare import is_bundle, make_side, open_once, prepare_opened
from core.system.atomic_folder import COSTS
from core.system.cancel import IsCancelled, never
from core.system.errors import NotComparableError, UsageError
from core.trace.events import Emit, no_emit
from core.trace.request import Source, write_source

if TYPE_CHECKING:
    from core.damage.kl import Outside
    from core.damage.result import Damage
    from core.damage.run_kl import KlResult
    from core.trace.run import Side


def damage(
    source: Source, *, original: Path | None = None, corpus: Path | None = None, exact: bool = False,
    budget: int | None = None, context: int = 128, emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> Damage:
    """Bill each tensor of a file with its share of the output's KL; original: the same model before it was quantised.

    Returns the tensors, the dearest first, each with its rows' shares (not of exact swaps), their sum, the whole file's
    KL and that of no swap, and the recipe with what it was measured to bring, or why there is none.
    corpus: a text file, None for the project's own. budget: bytes that a recipe may add. UsageError where exact is
    asked for without an original; NotComparableError where the original is of another model.
    """
    if exact and original is None:
        raise UsageError("--exact swaps tensors of the original: give --original FILE.")
    if source.compute != "f32":
        raise UsageError(f"--compute {source.compute}: damage is taken in float32.")
    side = open_file_side(source, emit)
    from core.damage.bill import DamageOptions
    from core.damage.bill import damage as bill
    from core.damage.corpus import read_corpus

    other = None if original is None else open_file_side(replace(source, path=original, plant=None), emit)
    text = read_corpus(corpus, side.tokenizer, context)
    return bill(side, other, text, DamageOptions(exact, budget, emit, cancelled))


def open_file_side(source: Source, emit: Emit) -> Side:
    """A model file under its settings, on the CPU; UsageError for what is no file of weights."""
    if source.scheme or is_bundle(source.path) or source.path.is_dir():
        raise UsageError(f"{source.path}: a GGUF or .apr file is needed, whose tensors are read here.")
    if source.device not in ("auto", "cpu"):
        raise UsageError(f"--device {source.device}: gradients through packed weights are taken on the CPU.")
    opened = open_once(source.path)
    on_cpu = replace(source, device="cpu")
    return make_side(prepare_opened(opened, (), on_cpu, emit), on_cpu, emit)


def kl(
    a: Source, b: Source, *, corpus: Path | None = None, context: int = 512, tokens: int | None = None, worst: int = 20,
    state: Path | None = None, emit: Emit = no_emit, cancelled: IsCancelled = never,
) -> KlResult:
    """KL(A || B) of every token of a text, teacher-forced, and why the worst tokens differ.

    Returns the numbers of every token and what they add up to (summary: mean, quantiles, buckets by confidence and by
    position), the worst tokens with their causes, and, where B alone has a quantised KV cache, what each head's costs.
    A source may be another engine's (llama.cpp:FILE): no cause is sought there. Under torchrun every process takes its
    share and returns the same. state: a folder that holds what is measured, so that the same call goes on where a
    killed one stopped.
    """
    from core.damage.corpus import read_corpus
    from core.damage.kl import Outside
    from core.damage.ranks import joined_ranks
    from core.damage.run_kl import ChunkStore, KlOptions, measure_kl

    sides = [open_kl_side(source, emit, cancelled) for source in (a, b)]
    left, right = (x.side if isinstance(x, Outside) else x for x in sides)
    if left.model.arch.n_vocab != right.model.arch.n_vocab:
        raise NotComparableError(f"{a.path.name} has {left.model.arch.n_vocab} tokens, {b.path.name} "
                                 f"{right.model.arch.n_vocab}: their distributions cannot be held side by side.")
    text = read_corpus(corpus, left.tokenizer, min(context, left.model.arch.n_ctx, right.model.arch.n_ctx), tokens)
    names = tuple(write_source(replace(source, path=Path(source.path.name)), replace(source, compute="f32", cache="f32",
                                                                                     device="auto"))
                  for source in (a, b))
    with joined_ranks() as ranks:
        store = None
        for first in (True, False):  # the first process begins a folder, the others find it begun
            if state is not None and ranks.is_first == first:
                store = ChunkStore.begin(state, *(open_identity(source) for source in (a, b)), text.chunks)
            ranks.share({})
        return measure_kl(sides[0], sides[1], (names[0], names[1]), text,
                          KlOptions(worst, store, ranks, emit if ranks.is_first else no_emit, cancelled))


def open_kl_side(source: Source, emit: Emit, cancelled: IsCancelled) -> Side | Outside:
    """A file under its settings, or another engine on it; UsageError, FileError."""
    if not source.scheme:
        return open_file_side(source, emit)
    from core.damage.kl import Outside
    from core.sources.engines.trace import check_path, final_norm

    check_path(source)
    side = open_file_side(replace(source, scheme="", cache="f32"), emit)
    return Outside(side, lambda tokens: final_norm(source, tokens, side.model.arch.d_model, cancelled=cancelled))


def open_identity(source: Source) -> tuple[object, ...]:
    """What the numbers of a side depend on: the file's bytes and how it is computed."""
    by = version_of(source.scheme) if source.scheme else ""
    return (by, open_once(source.path).identity.digest(), source.compute, source.threads, source.plant, source.cache)


def version_of(scheme: str) -> str:
    """The scheme with the version of its package; UsageError where that is absent."""
    from importlib.metadata import version

    from core.sources.engines.process import find_engine

    return f"{scheme} {version(find_engine(scheme).packages[0])}"


def write_cost(
    out: Path, found: Damage | KlResult, names: tuple[str, str | None], *, force: bool = False, command: str = "",
    repeat: str = "",
) -> None:
    """Write what damage or kl found as a folder. names: of the file and its original. UsageError, OutputError."""
    from core.bundle import costs
    from core.damage.result import Damage

    if isinstance(found, Damage):
        costs.write_damage(out, found, names, force=force, command=command, repeat=repeat)
    else:
        costs.write_kl(out, found, command=command, repeat=repeat)


def is_cost(path: Path) -> bool:
    """Say whether the path is the folder of an audit, or of a run of kl or damage that ended."""
    return is_bundle(path) and any(os.path.isfile(path / name) for name in COSTS)


def open_bill(path: Path) -> Damage | None:
    """A saved bill, without its rows; None of a folder of kl. FileError."""
    from core.bundle import costs

    return costs.open_bill(path)


def read_cost(path: Path, *, as_json: bool) -> str:
    """What such a folder says, as text or as its document; FileError."""
    from core.bundle import costs

    return costs.read_cost(path, as_json=as_json)
