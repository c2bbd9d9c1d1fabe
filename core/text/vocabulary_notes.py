"""Say what a file's tokenizer and its weights do not share, without parsing a token. Nothing here refuses a file."""

from __future__ import annotations

import re

from core.formats.model_file import LazyArray, ModelFile

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
TWICE = re.compile(r"(\{\{-?\s*bos_token\s*-?\}\}\s*){2}")


def vocabulary_notes(model: ModelFile, n_row: int) -> tuple[str, ...]:
    """Notes for a person on a vocabulary beside an embedding of n_row rows; () where there is nothing to say."""
    tokens, types = (model.keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    template, notes = model.keys.get("tokenizer.chat_template"), []
    if isinstance(tokens, LazyArray) and tokens.count > n_row:
        notes.append(f"the vocabulary has {tokens.count} tokens and the embedding {n_row} rows: "
                     f"tokens from {n_row} on have none")
    elif isinstance(tokens, LazyArray) and 0 < tokens.count < n_row:
        notes.append(f"the embedding has {n_row} rows and the vocabulary {tokens.count} tokens: "
                     f"{n_row - tokens.count} rows belong to no token (a padded embedding)")
    if isinstance(types, LazyArray) and types.count and not {CONTROL, USER_DEFINED} & set(types.load()):
        notes.append("no token is of type control (tokenizer.ggml.token_type): special tokens that stand in a prompt, "
                     "such as <|im_start|>, are cut up into pieces")
    if isinstance(template, str) and TWICE.search(template):
        notes.append("the chat template writes the BOS token twice: with --chat a prompt begins with two")
    return tuple(notes)
