"""Make text that came from a file safe to show: nothing in it can steer a terminal. It quotes for no file format."""

from __future__ import annotations

import unicodedata

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe_text(text: str) -> str:
    """Show controls, bidi marks, surrogates, unassigned characters and line separators as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_SHORT.get(c) or (_escape(c) if _is_steering(c) else c) for c in text)


def _is_steering(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("C") or category in ("Zl", "Zp")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
