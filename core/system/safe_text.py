"""Make text that came from a file, a name or the environment safe to show: nothing in it can steer a terminal.

SafeStream is the one way out for a command; the console has its own (apr_tui/textual_compat.py). It quotes for no file
format but the shell's, for commands that a person pastes.
"""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !\"#$%&()*+,-./:;<=>?@[]^_`{|}~")


def safe_text(text: str) -> str:
    """Show controls, bidi marks, surrogates, unassigned characters and line separators as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_SHORT.get(c) or (_escape(c) if is_steering(c) else c) for c in text)


def safe_lines(text: str, most: int | None = None) -> str:
    """The same of a text of several lines, which stay lines; its middle goes where it has more than most characters.

    The end stays: what to do stands there.
    """
    safe = "\n".join(map(safe_text, _without_middle(text, most).split("\n")))
    return _without_middle(safe, most)


def join_words(words: Iterable[str]) -> str:
    """Write a command as a shell reads it, in printable characters alone: $'...' where a word has others."""
    return " ".join(shlex.quote(word) if safe_text(word) == word else _dollar_quote(word) for word in words)


def is_steering(character: str) -> bool:
    """Say whether a character may move the cursor, turn the direction or be nothing at all."""
    category = unicodedata.category(character)
    return category.startswith("C") or category in ("Zl", "Zp")


class SafeStream:
    """A text stream to a person, through which only lines of shown characters go. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; a carriage return by itself rewrites a line of progress, anywhere else it is escaped."""
        self._stream.write(text if text == "\r" else safe_lines(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the stream has)
        return getattr(self._stream, name)


def _without_middle(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4 - 40
    return f"{text[:head]} ... {len(text) - head - tail} characters ... {text[-tail:]}"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _dollar_quote(word: str) -> str:
    """Quote by bytes, so that a name of any bytes is that name again."""
    data = os.fsencode(word) if _is_encodable(word) else word.encode("utf-8", "surrogatepass")
    return "$'" + "".join(chr(b) if b in _PLAIN else f"\\x{b:02x}" for b in data) + "'"


def _is_encodable(word: str) -> bool:
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True
