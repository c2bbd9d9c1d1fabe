"""Find out whether the terminal's ground is dark or light: COLORFGBG, else the terminal itself is asked (OSC 11).

It paints nothing. The question ends in one that every terminal answers, so the wait ends with that answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import termios
import time
import tty

from apr_tui.style import has_16_colours

ASK = b"\x1b]11;?\x1b\\\x1b[c"  # the ground's colour; then what the terminal is
WAIT_S = 0.5                    # of a terminal that answers neither
LIGHT_FROM = 0.5                # of the largest luminance, gamma left in: half-way to the eye
COLOUR = re.compile(rb"\]11;rgba?:([0-9a-fA-F]{2,4})/([0-9a-fA-F]{2,4})/([0-9a-fA-F]{2,4})")
END = re.compile(rb"\x1b\[\?[0-9;]*c")
MUTE = ("linux", "dumb", "vt")  # terminals that print the question
LIGHT_INDEXES = {"7", "15"}     # of COLORFGBG's last part


def theme_of(asked: str) -> str:
    """The palette's name: as asked; for auto by the terminal, dark where it says nothing."""
    if asked != "auto":
        return asked
    if has_16_colours():
        return "ansi"
    return "light" if is_light() else "dark"


def is_light() -> bool | None:
    """Say whether the ground is light; None where nothing says it."""
    told = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    if told:
        return told in LIGHT_INDEXES
    return read_answer(_ask())


def read_answer(answer: bytes) -> bool | None:
    """Read the terminal's answer."""
    found = COLOUR.search(answer)
    if found is None:
        return None
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue >= LIGHT_FROM)


def _ask() -> bytes:
    """What the terminal answers within the wait; nothing where it cannot be asked."""
    if os.environ.get("TERM", "dumb").startswith(MUTE):
        return b""
    answer = b""
    with contextlib.suppress(OSError, termios.error):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        try:
            modes = termios.tcgetattr(terminal)
            try:
                tty.setcbreak(terminal, termios.TCSANOW)
                os.write(terminal, ASK)
                end = time.monotonic() + WAIT_S
                while not END.search(answer) and select.select([terminal], [], [], max(end - time.monotonic(), 0))[0]:
                    answer += os.read(terminal, 256)
            finally:
                termios.tcsetattr(terminal, termios.TCSANOW, modes)
        finally:
            os.close(terminal)
    return answer
