"""Turn an engine's run into a Trace: its cells, its values, and its capture contract. It judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.model.stages import FACTORS, PRODUCT, ROUTED, ROUTER, place_order
from core.sources.engines.process import Answer, Ask, Values, find_engine, run_engine
from core.system.arrays import Floats32
from core.system.cancel import IsCancelled
from core.system.errors import FileError, UsageError, os_reason
from core.system.json_text import from_json
from core.system.limits import DOCUMENT_BYTES
from core.system.regular_file import read_file
from core.text.library import encode_text, no_panic
from core.text.tokenizer import validate_text
from core.trace.events import CellMeasured, Emit, no_emit
from core.trace.measure import measure_array
from core.trace.measures import SideName
from core.trace.record import CaptureContract, NextToken, Token, Trace
from core.trace.request import Prompt, Source
from core.trace.stats import Cell

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOP = 5


def trace_engine(
    source: Source, tokens: Sequence[Token], text_of: Callable[[int], str | None], *,
    layers: tuple[int, int] | None = None, witness: bool = True, beside: Path | None = None,
    side: SideName | None = None, emit: Emit, cancelled: IsCancelled,
) -> Trace:
    """Run the source's engine on the tokens; FileError where it fails, UsageError where it is not installed.

    beside: a file of the same model, where the source is a folder.
    """
    check_path(source)
    if source.plant:
        raise UsageError(f"--plant {source.plant}: {source.scheme} runs by itself, no bug can be planted in it. "
                         "Plant in a model file.")
    ids = tuple(t.id for t in tokens)
    ask = Ask(str(source.path.resolve()), ids, source.threads, layers, _device(source), witness,
              None if beside is None else str(beside.resolve()), source.cache)
    answer, values = run_engine(source.scheme, ask, emit=emit, cancelled=cancelled)
    cells = {}
    for place in sorted(values, key=place_order):
        cells[place] = _cell(values, place, len(tokens))
        emit(CellMeasured(place, cells[place], side))
    said = tokens if answer.tokens == ids else [Token(i, text_of(i)) for i in answer.tokens]
    other = () if answer.tokens == ids else (f"{source.scheme} ran other tokens than it was asked to",)
    return Trace(
        name=f"{source.scheme}:{source.path.name}", facts=_facts(answer), tokens=tuple(said), cells=cells,
        values=values, top=_top(values, text_of), observed_equals_unobserved=answer.same_logits,
        notes=(*answer.notes, *other),
        origin={"path": str(source.path), "kind": "another engine", "scheme": source.scheme})


def final_norm(
    source: Source, tokens: Sequence[int], width: int, *, cancelled: IsCancelled
) -> tuple[Floats32, str]:
    """What the engine's final norm gives for the tokens [T, width], and the compute that it declares; FileError."""
    ask = Ask(str(source.path.resolve()), tuple(tokens), source.threads, (0, 0), _device(source), False,
              cache=source.cache)
    answer, values = run_engine(source.scheme, ask, emit=no_emit, cancelled=cancelled)
    found = values.get((None, "final_norm"))
    if found is None or found.shape != (len(tokens), width):
        raise FileError(f"{source.scheme} gave no final norm of [{len(tokens)}, {width}] for {source.path.name}.")
    return found, answer.compute


def check_path(source: Source) -> None:
    """Hold the path to what the engine reads; FileError, UsageError."""
    engine, path = find_engine(source.scheme), source.path
    if not path.exists():
        raise FileError(f"{source.scheme}:{path}: there is no such file. Give SCHEME:FILE.")
    folder = engine.folders and path.is_dir()
    if folder and not (path / "config.json").is_file():
        raise FileError(f"{source.scheme}:{path}: the folder has no config.json; it needs that and safetensors files.")
    if path.is_dir() and not folder:
        raise FileError(f"{source.scheme}:{path} is a folder; {source.scheme} reads a .gguf file.")
    if source.cache != "f32" and source.scheme != "llama.cpp":
        raise UsageError(f"{source.scheme}:{path}: cache={source.cache} is known of llama.cpp and of files run here.")
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise FileError(f"{source.scheme}:{path}: {source.scheme} reads .gguf. "
                        f"Convert it first: apr-tui convert {path} FILE.gguf")


def folder_tokens(folder: Path, prompt: Prompt) -> tuple[tuple[Token, ...], Callable[[int], str | None]]:
    """Encode a prompt with a safetensors folder's tokenizer.json; UsageError, FileError."""
    tokenizer = _open_tokenizer(folder / "tokenizer.json")
    text_of: Callable[[int], str | None] = tokenizer.id_to_token if tokenizer is not None else lambda i: None
    if prompt.tokens is not None:
        ids = list(prompt.tokens)
    elif prompt.chat:
        raise UsageError("--chat is not known for a folder: give --tokens 1,2,3.")
    elif tokenizer is None:
        raise UsageError(f"{folder} has no tokenizer.json: give --tokens 1,2,3.")
    else:
        validate_text(prompt.text)
        ids = _encode(tokenizer, prompt.text, folder)
    n_vocab = _vocab_size(folder / "config.json")
    if not ids:
        raise UsageError("the prompt is empty: there is no token to feed. Give --prompt TEXT or --tokens 1,2,3.")
    outside = [i for i in ids if i < 0 or (n_vocab is not None and i >= n_vocab)]
    if outside:
        known = "ids count from 0" if n_vocab is None else f"it has ids 0 to {n_vocab - 1}"
        raise UsageError(f"token {outside[0]} is outside the vocabulary of {folder.name}: {known}.")
    return tuple(Token(i, text_of(i)) for i in ids), text_of


def _encode(tokenizer: Tokenizer, text: str, folder: Path) -> list[int]:
    try:
        with no_panic():
            return encode_text(tokenizer, text, special=True)
    except ValueError as error:
        raise FileError(f"{folder / 'tokenizer.json'} cannot encode the prompt: {error}. Give --tokens.") from error


def _vocab_size(path: Path) -> int | None:
    """The vocabulary that a config.json states; None where it states none."""
    repair = "Give a folder that transformers reads."
    config = from_json(read_file(path, DOCUMENT_BYTES, repair), str(path), repair)
    found = config.get("vocab_size") if isinstance(config, dict) else None
    return found if type(found) is int else None


def _open_tokenizer(path: Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    if not path.is_file():  # neither a pipe nor a device
        return None
    try:
        with no_panic():
            return Tokenizer.from_file(str(path))
    except ValueError as error:
        raise FileError(f"{path} is not a tokenizer: {os_reason(error)}. Give --tokens.") from error


def _device(source: Source) -> str:
    if source.device in ("auto", "cpu"):
        return "cpu"
    if not find_engine(source.scheme).devices:
        raise UsageError(f"{source.scheme} runs on the CPU here. Leave --device out; "
                         "the other side may say FILE@device=cuda.")
    return source.device


def _cell(values: Values, place: tuple[int | None, str], n_token: int) -> Cell:
    layer, stage = place
    if stage == ROUTED:
        from core.trace.taps import measure_routes

        return measure_routes(values[place], values.get((layer, ROUTER)), n_token - len(values[place]))
    left, right = (values.get((layer, name)) for name in FACTORS)
    factors = None
    if stage == PRODUCT and left is not None and right is not None:
        factors = (left, right) if left.shape == right.shape == values[place].shape else None
    return measure_array(values[place], n_token - len(values[place]), factors)


def _facts(answer: Answer) -> CaptureContract:
    return CaptureContract(
        engine=answer.engine, arch=answer.arch, n_layer=answer.n_layer, d_model=answer.d_model, n_vocab=answer.n_vocab,
        definition="sample", compute=answer.compute, device=answer.device, threads=answer.threads, kernel=answer.kernel,
        dtype=answer.dtype)


def _top(values: Values, text_of: Callable[[int], str | None]) -> tuple[NextToken, ...]:
    """The candidates of the largest finite logits, the lowest id first on a tie."""
    logits = values.get((None, "logits"))
    if logits is None:
        return ()
    row = np.where(np.isfinite(logits[-1]), logits[-1], -np.inf)
    best = [int(i) for i in np.argsort(-row, kind="stable")[:TOP] if np.isfinite(row[i])]
    return tuple(NextToken(i, text_of(i), float(row[i])) for i in best)
