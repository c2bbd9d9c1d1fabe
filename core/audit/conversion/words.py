"""The words of a comparison with an original."""

from __future__ import annotations

import re


def about_original(sentence: str) -> str:
    """A sentence on A and B, said of the original and the file."""
    sentence = re.sub(r"\bB = ([^ ]+) x A\b", r"the file's values are \1 x the original's", sentence)
    sentence = re.sub(r"\bB = A\b", "the file's values are the original's", sentence)
    for letter, word in (("A", "the original"), ("B", "the file")):
        sentence = re.sub(rf"\b{letter}'s\b", f"{word}'s", sentence)
        sentence = re.sub(rf"\b{letter}\b", word, sentence)
    return sentence


def layer_of(name: str) -> int | None:
    """The layer of a file's tensor; None of the whole model."""
    parts = name.split(".")
    is_layer = len(parts) > 2 and parts[0] == "blk" and parts[1].isascii() and parts[1].isdecimal()
    return int(parts[1]) if is_layer else None
