"""Open the two files of a pair, each once, say what they differ in, and make sides of them. Nothing is run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.audit.file_pair import file_diff, is_same_key
from core.formats.identity import Identity
from core.session.prepare import (
    OpenedModel,
    empty_trace,
    encode,
    encode_while_loading,
    identify,
    load_torch,
    make_side,
    prepare_opened,
    refuse_scheme,
    resolve,
    validate_tokens,
)
from core.system.cancel import IsCancelled, never
from core.system.errors import FileError
from core.trace.events import Emit, FilesCompared, Start
from core.trace.record import Token, Trace
from core.trace.request import Prompt, Source

if TYPE_CHECKING:
    from core.trace.run import Side

TOKENIZER = ("tokenizer.", "general.architecture")  # keys that an encoding depends on


def open_both(a: Source, b: Source) -> tuple[Identity, Identity]:
    """Open the files of a pair, one that is both sides once; FileError."""
    left = identify(a.path)
    return left, left if a.path == b.path else identify(b.path)


def compare_files(a: Identity, b: Identity, emit: Emit, cancelled: IsCancelled = never) -> tuple[str, ...]:
    """Say what the files of a pair differ in, before any forward; Cancelled."""
    found = file_diff(a.file, b.file, cancelled)
    emit(FilesCompared(found))
    return found


def open_pair(
    a: Source, b: Source, files: tuple[Identity, Identity], prompt: Prompt | None, emit: Emit
) -> tuple[Side, Side, Trace, Trace]:
    """Make sides of two model files that are open, or of one twice, and say how each is taken."""
    for source in (a, b):
        refuse_scheme(source)
    left = resolve(files[0])
    right = left if files[0] is files[1] else resolve(files[1])
    tokens_a, tokens_b = _tokens(left, right, prompt or Prompt(), lambda: load_torch(a.device, emit))
    emit(Start(n_layer=left.arch.n_layer, tokens=tokens_a))
    model_a = prepare_opened(left, tokens_a, a, emit)
    side_a = make_side(model_a, a, emit)
    model_b = prepare_opened(right, tokens_b, b, emit)
    side_b = make_side(model_b, b, emit)
    return side_a, side_b, empty_trace(side_a, model_a), empty_trace(side_b, model_b)


def _tokens(
    a: OpenedModel, b: OpenedModel, prompt: Prompt, load: Callable[[], object]
) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Encode the prompt by each file; where one has no usable tokenizer, it takes the other's tokens.

    Files of one tokenizer encode it once, beside load(), which the next step would do.
    """
    if all(is_same_key(a.file, b.file, key) for key in {*a.file.keys, *b.file.keys} if key.startswith(TOKENIZER)):
        tokens, _ = encode_while_loading(a, prompt, load)
        validate_tokens(b, [t.id for t in tokens])
        return tokens, tokens
    encoded: list[tuple[Token, ...] | None] = []
    refusal: FileError | None = None
    for model in (a, b):
        try:
            encoded.append(encode(model, prompt))
        except FileError as error:
            encoded.append(None)
            refusal = error
    left, right = encoded[0] or encoded[1], encoded[1] or encoded[0]
    if left is None or right is None:
        assert refusal is not None
        raise refusal
    return left, right
