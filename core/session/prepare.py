"""Turn a Source and a Prompt into what can be run or read: a file opened once, its tokens, device and capture contract.

Nothing is run here; run_trace.py does. Nothing imports torch or polars before a run needs them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from core.formats import open_model as reader
from core.formats.identity import Identity, stamp_of
from core.formats.model_file import ModelFile
from core.model.arch import Arch, read_arch
from core.system.cancel import IsCancelled
from core.system.errors import UsageError
from core.system.gpu_errors import place_on_device
from core.system.gpus import choose_device
from core.system.progress import Phase
from core.text.encode_process import start_encoding, take_encoded
from core.text.tokenizer import Tokenizer, open_tokenizer
from core.text.vocabulary_notes import vocabulary_notes
from core.trace.events import CellMeasured, Emit, Event, TokenGenerated
from core.trace.record import CaptureContract, Token, Trace
from core.trace.request import Prompt, Source

if TYPE_CHECKING:
    from core.trace.run import Side

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model file opened once, with what every step of a run asks of it."""

    file: ModelFile
    arch: Arch
    tokenizer: Tokenizer
    identity: Identity


@dataclass(frozen=True, slots=True)
class Prepared(OpenedModel):
    """All that a run needs before a weight is read. device: cpu or cuda:N; reason: why that one."""

    tokens: tuple[Token, ...]
    device: str
    reason: str


def open_model(path: Path) -> ModelFile:
    """Open a GGUF or .apr file in well under 0.1 s, weights mapped and not read; FileError."""
    return reader.open_model(path)


def identify(path: Path) -> Identity:
    """Open a file whose digest may be asked for later; FileError."""
    stamp = stamp_of(path)
    return Identity(open_model(path), stamp)


def open_once(path: Path) -> OpenedModel:
    """Open a file, hold it to its architecture and find its tokenizer, of which nothing is parsed yet; FileError."""
    return resolve(identify(path))


def resolve(identity: Identity) -> OpenedModel:
    """Do what open_once does with a file that is open."""
    return OpenedModel(identity.file, read_arch(identity.file), open_tokenizer(identity.file), identity)


def prepare(source: Source, prompt: Prompt, emit: Emit, layers: tuple[int, int] | None = None) -> Prepared:
    """Open, encode and load torch, and refuse what cannot run; UsageError, FileError, DeviceError."""
    opened = open_once(source.path)
    n_layer = opened.arch.n_layer
    if layers is not None and not 0 <= layers[0] < layers[1] <= n_layer:
        raise UsageError(
            f"--layers {layers[0]}..{layers[1]}: A..B with 0 <= A < B <= {n_layer} is needed (B excluded).")
    tokens, (device, reason) = encode_while_loading(opened, prompt, lambda: _load_torch_for(source, emit))
    return Prepared(opened.file, opened.arch, opened.tokenizer, opened.identity, tokens, device, reason)


def prepare_opened(opened: OpenedModel, tokens: tuple[Token, ...], source: Source, emit: Emit) -> Prepared:
    """The same for a file that is open and a prompt that is encoded; the errors of load_torch."""
    return Prepared(opened.file, opened.arch, opened.tokenizer, opened.identity, tokens, *_load_torch_for(source, emit))


def is_bundle(path: Path) -> bool:
    """Say whether the path is a saved bundle's folder."""
    return os.path.isfile(path / "manifest.json")  # Path.is_file raises where the folder may not be read


def open_bundle(path: Path) -> Trace:
    """Open a saved bundle; FileError."""
    from core.bundle.reader import read_bundle

    return read_bundle(path)


def open_saved(source: Source) -> Trace:
    """Open a bundle as a side; UsageError where a bug is to be planted in it: what is saved is not run again."""
    if source.plant:
        raise UsageError(
            f"--plant {source.plant}: {source.path} is a saved bundle, it is not run again. Plant in a model file.")
    return open_bundle(source.path)


def encode(model: OpenedModel, prompt: Prompt) -> tuple[Token, ...]:
    """Turn a prompt into tokens with the file's own tokenizer; UsageError, FileError (unusable, with the way out)."""
    tokenizer = model.tokenizer
    if prompt.tokens is not None:
        ids = list(prompt.tokens)
    else:
        ids = tokenizer.encode(tokenizer.apply_chat_template(prompt.text) if prompt.chat else prompt.text)
    validate_tokens(model, ids)
    return tuple(Token(i, tokenizer.token_text(i)) for i in ids)


def encode_unknown(path: Path, prompt: Prompt) -> tuple[tuple[Token, ...], Callable[[int], str | None]]:
    """The same for a file whose architecture is not run here: what the vocabulary has, its engine knows."""
    tokenizer = open_tokenizer(open_model(path))
    ids = list(prompt.tokens) if prompt.tokens is not None else tokenizer.encode(
        tokenizer.apply_chat_template(prompt.text) if prompt.chat else prompt.text)
    if not ids or min(ids) < 0:
        raise UsageError(f"{ids[:1] or 'nothing'} is no token to feed. Give --prompt TEXT or --tokens 1,2,3.")
    return tuple(Token(i, tokenizer.token_text(i)) for i in ids), tokenizer.token_text


def encode_while_loading(model: OpenedModel, prompt: Prompt, work: Callable[[], T]) -> tuple[tuple[Token, ...], T]:
    """Encode as encode does while work(), the import of torch, goes on here; one after the other where that is done."""
    if prompt.tokens is not None or "torch" in sys.modules:
        return encode(model, prompt), work()
    try:
        child = start_encoding(model.file.path, prompt.text, prompt.chat)
    except OSError:
        return encode(model, prompt), work()
    with child:
        try:
            done = work()
            found = take_encoded(child)
        finally:
            child.kill()
    if found is None:
        return encode(model, prompt), done  # encode says what is wrong
    validate_tokens(model, [i for i, _ in found])
    return tuple(Token(i, text) for i, text in found), done


def validate_tokens(model: OpenedModel, ids: Sequence[int]) -> None:
    arch, name = model.arch, model.file.path.name
    if not ids:
        raise UsageError("the prompt is empty: there is no token to feed. Give --prompt TEXT or --tokens 1,2,3.")
    outside = [i for i in ids if not 0 <= i < arch.n_vocab]
    if outside:
        raise UsageError(f"token {outside[0]} is outside the vocabulary of {name}: 0 to {arch.n_vocab - 1}.")
    if len(ids) > arch.n_ctx:
        raise UsageError(
            f"the prompt has {len(ids)} tokens; {name} has a context of {arch.n_ctx}. Shorten it.")


def refuse_scheme(source: Source) -> None:
    """UsageError for another engine, where a source must be run again with other values in it."""
    if source.scheme:
        raise UsageError(f"{source.scheme}:{source.path} - another engine is not run with grafts. "
                         "Use compare, or bisect model files.")


def load_torch(device: str, emit: Emit) -> tuple[str, str]:
    """Import torch and what runs a forward (one to two seconds, once), and say on which device and why.

    Errors: those of choose_device, before the import.
    """
    chosen = choose_device(device)
    if "core.trace.run" not in sys.modules:
        _import_torch(emit)
    return place_on_device(device, *chosen)


def _load_torch_for(source: Source, emit: Emit) -> tuple[str, str]:
    """Load torch; auto takes the CPU for a compute that no GPU path has."""
    device, reason = load_torch(source.device, emit)
    from core.quant.activations import COMPUTES

    compute = COMPUTES.get(source.compute)
    if source.device == "auto" and device != "cpu" and compute is not None and compute.cpu_only:
        return "cpu", f"compute {source.compute} runs on the CPU only"
    return device, reason


def _import_torch(emit: Emit) -> None:
    emit(Phase("loading torch"))
    # threads that spin while others work cost up to ten times the run
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # collection takes 10 % of the import and frees nothing
    try:
        import core.trace.run  # noqa: F401
    finally:
        gc.freeze()  # later collections need not walk it
        gc.enable()


def make_side(model: Prepared, source: Source, emit: Emit) -> Side:
    """Set a prepared file on its device, under the source's settings; UsageError, DeviceError."""
    from core.kernels.cpu.build import library, pending_build
    from core.trace.run import place_model

    if model.device == "cpu" and pending_build() is not None:
        emit(Phase("compiling kernels for this processor, once"))
        library()
    return place_model(model.file, model.arch, model.tokenizer, replace(source, device=model.device))


def empty_trace(side: Side, model: Prepared) -> Trace:
    """A Trace of what is known before the run: the capture contract and the file's identity, no cells yet."""
    import torch

    from core.model.matmul import kernel_path
    from core.trace.run import SEED

    file, arch = model.file, model.arch
    facts = CaptureContract(
        engine="apr-tui", arch=arch.name, n_layer=arch.n_layer, d_model=arch.d_model, n_vocab=arch.n_vocab,
        definition="sample", compute=side.compute, device=str(side.model.device), threads=side.threads,
        kernel=kernel_path(side.compute, side.model.device) + (
            "" if side.model.kv.is_exact else f"; KV cache {side.model.kv.text}"), dtype="float32",
    )
    origin = {
        "path": str(file.path), "format": file.format, "size_bytes": file.size_bytes,
        "header_sha256": file.header_sha256, "arch": arch.facts(), "widths": arch.widths,
        "weight_types": file.types_text(), "device_reason": model.reason, "seed": SEED, "torch": torch.__version__,
    }
    planted = ", ".join(str(p) for p in (side.plant, file.key("apr_tui.planted")) if p)
    return Trace(name=file.path.name, facts=facts, tokens=model.tokens, cells={}, planted=planted or None,
                 notes=(*file.notes, *arch.notes, *model.tokenizer.notes,
                        *vocabulary_notes(file, arch.n_vocab)), origin=origin, identity=model.identity)


def identifying(emit: Emit, *identities: Identity | None) -> Emit:
    """Begin to take the digests in the background once the first row stands: nothing waits for them before."""
    def told(event: Event) -> None:
        emit(event)
        if isinstance(event, CellMeasured) and event.place[1] == "output":
            for identity in identities:
                if identity is not None:
                    identity.start()

    return told


def fit_to_context(side: Side, tokens: Sequence[Token], wanted: int) -> int:
    """Return how many of the wanted tokens the context holds. UsageError for a bug that needs the prompt."""
    from core.faults.value_faults import VALUE_FAULTS

    if side.plant and not VALUE_FAULTS[side.plant.partition("@")[0]].value_only:
        raise UsageError(
            f"--plant {side.plant} does not go with --generate: it is made from the inputs of a whole prompt.")
    return min(wanted, side.model.arch.n_ctx - len(tokens))


def continue_text(side: Side, model: Prepared, n_token: int, emit: Emit, cancelled: IsCancelled) -> str:
    """Generate up to n_token tokens greedily and return their text; emits each as a token event."""
    from core.trace.run import continue_greedily

    tokenizer = model.tokenizer
    emit(Phase("generating"))
    end = model.file.key("tokenizer.ggml.eos_token_id")
    ids = continue_greedily(
        side, [t.id for t in model.tokens], fit_to_context(side, model.tokens, n_token), () if end is None else (end,),
        lambda i: emit(TokenGenerated(tokenizer.token_text(i) or f"[{i}]")), cancelled)
    return "".join(f"[{i}]" for i in ids) if tokenizer.refusal else tokenizer.decode(ids)
