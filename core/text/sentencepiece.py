"""Merge the characters of a text into the tokens of an SPM vocabulary (tokenizer.ggml.model "llama").

The best-scored neighbouring pair that is itself a token is joined, again and again; on equal scores the leftmost. What
is left over is spelled in byte tokens. This is neither Unigram's best path nor a list of merges, so no model class of
the `tokenizers` library does it. Source: SentencePiece's BPE mode (bpe_model.cc) and llama.cpp's llm_tokenizer_spm.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from core.system.errors import UsageError
from core.text.vocabulary import BYTE, Vocabulary

SPACE = "\u2581"  # stands for a space inside the vocabulary


def byte_token(byte: int) -> str:
    """Name the token that stands for one byte."""
    return f"<0x{byte:02X}>"


def build_spm(words: Vocabulary) -> Callable[[str], list[int]]:
    """Return the encoder of a file, a text beginning with a space unless the file says otherwise. FileError."""
    scores = words.scores
    if not any(kind == BYTE for kind in words.types) and not any(len(t) == 1 for t in words.texts):
        raise words.error("its vocabulary has neither byte tokens nor single characters, so it can spell nothing.")
    prefix = SPACE if words.flag("add_space_prefix", True) else ""
    return lambda text: spm_ids(prefix + text.replace(" ", SPACE), words.ids, scores)


def spm_ids(text: str, ids: Mapping[str, int], scores: Sequence[float]) -> list[int]:
    """Encode a text whose spaces are already SPACE. UsageError: a character without a token or bytes to spell it."""
    out: list[int] = []
    for piece in _merged(text, ids, scores):
        if piece in ids:
            out.append(ids[piece])
            continue
        for byte in piece.encode():
            if byte_token(byte) not in ids:
                raise UsageError(
                    f"The vocabulary has no token for {piece!r} and no byte token {byte_token(byte)} to spell it. "
                    "Change the prompt, or give token ids with --tokens."
                )
            out.append(ids[byte_token(byte)])
    return out


def _merged(text: str, ids: Mapping[str, int], scores: Sequence[float]) -> list[str]:
    """Join pairs until no neighbouring two make a token; each piece that is longer than a character is one."""
    pieces = list(text)
    after = [*range(1, len(pieces)), -1] if pieces else []
    before = list(range(-1, len(pieces) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            token = ids.get(pieces[left] + pieces[right])
            if token is not None:
                heapq.heappush(queue, (-scores[token], left, right, pieces[left] + pieces[right]))

    for i in range(len(pieces) - 1):
        offer(i, i + 1)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if not pieces[left] or not pieces[right] or pieces[left] + pieces[right] != joined:
            continue  # one of the two has been joined elsewhere since
        pieces[left], pieces[right] = joined, ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [p for p in pieces if p]
