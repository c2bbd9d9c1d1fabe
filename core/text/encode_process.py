"""Encode one prompt in a process of its own: the whole program of that process, and how to ask it.

A vocabulary of 150,000 takes most of a second of Python to read, and so does importing torch: each in a process of its
own, they take that time once. What goes wrong here is not told here: the parent then encodes for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.system.child import Child, answer, ask_child, take_answer

SECONDS = 30.0  # to wait for it, once the parent has nothing else to do

Encoded = list[tuple[int, str | None]]  # id and text of each token


def start_encoding(path: Path, text: str, chat: bool) -> Child:
    """Start the process on a text, through the file's template if chat; OSError where it does not start."""
    return ask_child("core.text.encode_process", {"path": str(path), "text": text, "chat": chat})


def take_encoded(child: Child) -> Encoded | None:
    """Wait for the tokens; None where the process failed."""
    try:
        return [(int(i), text) for i, text in take_answer(child, SECONDS)]
    except (TimeoutError, ValueError):
        return None


def _encode(asked: Mapping[str, Any]) -> Encoded:
    import gc

    gc.disable()  # nothing here becomes garbage, and collection costs a fifth of the time
    from core.formats.open_model import open_model
    from core.text.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(open_model(Path(asked["path"])))
    text = tokenizer.apply_chat_template(asked["text"]) if asked["chat"] else asked["text"]
    return [(i, tokenizer.token_text(i)) for i in tokenizer.encode(text)]


if __name__ == "__main__":
    answer(_encode)
