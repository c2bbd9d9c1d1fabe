"""Change a good file a little, in the ways that find faults: bits, lengths, cuts, odd numbers and words. Seeded."""

from __future__ import annotations

import random
import re
import struct

WHOLE = (0, 1, 2, 7, 0x7F, 0xFF, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1,
         1 << 63, (1 << 64) - 1)
WORDS = (b"null", b"true", b'""', b"[]", b"{}", b"nan", b"NaN", b"-1", b"1e999", b"-0", b"1e-400", b"0.5", b"inf",
         b"1 2", b"9" * 30, b"18446744073709551616", b"2024-01-01", b"\xc3\x28", b"\x1b[2J", b"\xe2\x80\xae", b'"a"',
         b"*a", b"<<", b"\\ud800", b"0x10", b",", b":", b"\0", b"\r\n", b"%s{0}", b"../../x", b"[" * 2000)
NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
STRING = re.compile(rb'"[^"\n]{0,200}"')


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return a mutant: one to four changes, each anywhere, or where a number, a word or a line stands."""
    is_text = b"\0" not in data[:4096]
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        draw.choice(TEXT if is_text and draw.random() < 0.75 else BYTES)(out, draw)
    return bytes(out)


def _at(out: bytearray, draw: random.Random) -> int:
    """A place; near the beginning half of the time, for there the lengths stand."""
    size = max(1, len(out))
    return draw.randrange(size if draw.random() < 0.5 else min(size, 600))


def _bit(out: bytearray, draw: random.Random) -> None:
    if out:
        out[_at(out, draw)] ^= 1 << draw.randrange(8)


def _byte(out: bytearray, draw: random.Random) -> None:
    if out:
        out[_at(out, draw)] = draw.choice((0, 1, 10, 34, 44, 127, 128, 255, draw.randrange(256)))


def _whole(out: bytearray, draw: random.Random) -> None:
    code = draw.choice(("<H", "<I", "<Q", ">Q"))
    size, at = struct.calcsize(code), _at(out, draw)
    out[at:at + size] = struct.pack(code, (draw.choice(WHOLE) + draw.choice((0, 0, 1, -1))) % (1 << 8 * size))


def _cut(out: bytearray, draw: random.Random) -> None:
    del out[_at(out, draw):]


def _drop(out: bytearray, draw: random.Random) -> None:
    at = _at(out, draw)
    del out[at:at + draw.choice((1, 4, 8, 64, 1000))]


def _double(out: bytearray, draw: random.Random) -> None:
    at = _at(out, draw)
    out[at:at] = out[at:at + draw.choice((1, 8, 64, 1000))] * draw.choice((1, 1, 2, 50))


def _insert(out: bytearray, draw: random.Random) -> None:
    at = _at(out, draw)
    out[at:at] = draw.choice((draw.choice(WORDS), draw.randbytes(8), bytes(64)))


def _word(pattern: re.Pattern[bytes], out: bytearray, draw: random.Random) -> None:
    found = [m.span() for m in pattern.finditer(out)]
    if found:
        start, end = draw.choice(found)
        out[start:end] = draw.choice((*WORDS, *(out[a:b] for a, b in draw.sample(found, min(3, len(found))))))


def _number(out: bytearray, draw: random.Random) -> None:
    _word(NUMBER, out, draw)


def _string(out: bytearray, draw: random.Random) -> None:
    _word(STRING, out, draw)


def _lines(out: bytearray, draw: random.Random) -> None:
    lines = out.split(b"\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    how = draw.randrange(4)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(other, lines[at])
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = lines[at] * draw.choice((2, 20))
    out[:] = b"\n".join(lines)


BYTES = (_bit, _byte, _whole, _whole, _cut, _drop, _double, _insert)
TEXT = (_number, _number, _string, _string, _lines, _insert, _drop)
