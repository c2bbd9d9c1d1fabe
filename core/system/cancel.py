"""How whoever waits for a run asks it to end: a call that says whether. It ends nothing."""

from __future__ import annotations

from collections.abc import Callable

IsCancelled = Callable[[], bool]


def never() -> bool:
    """Never cancel."""
    return False
