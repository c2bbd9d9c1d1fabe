"""Text and numbers on their way out: JSON that any reader accepts, and nothing that steers a terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from core.system.json_text import from_json, number, to_json
from core.system.safe_text import safe_text
from core.trace.record import Token
from core.trace.stats import Stats


def test_json_has_strings_for_what_json_cannot_say():
    text = to_json([Stats(mean=math.nan, std=None), np.float64(math.inf), np.int64(3), -math.inf, Path("x"), (1, True)])
    found = json.loads(text)
    assert (found[0]["mean"], found[0]["std"]) == ("nan", None) and found[1:] == ["inf", 3, "-inf", "x", [1, True]]
    assert number("nan") != number("nan") and number(None) is None and number("-inf") == -math.inf and number(3) == 3.0
    with pytest.raises(ValueError, match="not a number"):
        number("three")


def test_a_record_keeps_its_fields_in_json():
    assert from_json(to_json(Token(3, "\x1b\x7f")), "t", "") == {"id": 3, "text": "\x1b\x7f"}
    assert to_json(Token(3, "\x1b\x7f")).isprintable()


@pytest.mark.parametrize("text,shown", [
    ("plain", "plain"), ("Grüße 你好 🙂", "Grüße 你好 🙂"), ("a\nb\t", "a\\nb\\t"), ("\x1b[2J", "\\x1b[2J"),
    ("\u202egpj", "\\u202egpj"), ("\ud83d", "\\ud83d"), ("\x9b", "\\x9b"), ("\u2028", "\\u2028"),
    ("\U000e0041", "\\U000e0041"),
])
def test_text_is_shown_without_its_controls(text, shown):
    assert safe_text(text) == shown


def test_a_number_that_no_float_holds_is_no_number():
    with pytest.raises(ValueError, match="more digits than a float"):
        number(10**400)


def test_every_shown_character_is_printable_or_a_space():
    ranges = (range(0x3000), range(0xD7F0, 0xE010), range(0xFEF0, 0x10000), range(0xE0000, 0xE0080))
    shown = safe_text("".join(chr(code) for codes in ranges for code in codes))
    assert all(c.isprintable() or c.isspace() for c in shown) and not any(c in shown for c in "\x1b\x9b\u202e\r\n")
