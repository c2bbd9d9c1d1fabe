"""Call a library that is written in Rust on a stranger's text: what it raises is a ValueError, its print goes nowhere.

A panic is no Exception to Python, and the library writes it to the process's stderr, with the text in it, whatever
stands there. Its other errors are of the class Exception itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from core.system.cancel import wait_for

LONG = 1 << 16  # characters of a text that take so long that Ctrl-C must be able to end it
STDERR = 2  # the descriptor: the library knows no Python stream
_LOCK = threading.Lock()
_INSIDE: list[int] = []  # what stderr was, once for each thread that is inside


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """Run the block with a stderr that shows nothing; ValueError where the library panics or raises Exception."""
    _silence()
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":  # which cannot be imported
            raise
        raise ValueError(str(error)[:200]) from error
    finally:
        _restore()


def encode_text(engine: Any, text: str, special: bool = False) -> list[int]:  # noqa: ANN401 (tokenizers has no types)
    """Ids of a text by an engine of the `tokenizers` library; special: with what it adds. Ctrl-C ends the wait."""
    if len(text) < LONG:
        return list(engine.encode(text, add_special_tokens=special).ids)
    # of one text, encode would hold Python's lock all along
    return wait_for(lambda: list(engine.encode_batch_fast([text], add_special_tokens=special)[0].ids))


def _silence() -> None:
    with _LOCK:
        if not _INSIDE:
            with contextlib.suppress(OSError):  # no stderr at all shows nothing either
                kept, null = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, STDERR)
                os.close(null)
                _INSIDE.append(kept)
                return
        _INSIDE.append(_INSIDE[0] if _INSIDE else -1)


def _restore() -> None:
    with _LOCK:
        kept = _INSIDE.pop()
        if not _INSIDE and kept >= 0:
            os.dup2(kept, STDERR)
            os.close(kept)
