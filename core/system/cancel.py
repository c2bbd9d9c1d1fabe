"""How whoever waits for a run asks it to end: a call that says whether; and how Ctrl-C ends a wait for a library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

IsCancelled = Callable[[], bool]
T = TypeVar("T")
POLL_S = 0.1


def never() -> bool:
    """Never cancel."""
    return False


def wait_for(job: Callable[[], T]) -> T:
    """Run a library's long call in a thread of its own, where this one is the main thread, and return its result.

    A signal's handler runs between two instructions of Python, which a call of many seconds has none of. Whoever is
    interrupted leaves the thread behind: it ends with the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return job()
    results, failed = list[T](), list[BaseException]()

    def work() -> None:
        try:
            results.append(job())
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            failed.append(error)

    thread = threading.Thread(target=work, name="apr-library", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
    if failed:
        raise failed[0]
    return results[0]
