"""The child process that runs another engine: python -m core.sources.engines.child SCHEME FOLDER. process.py starts it.

Not for people: a failure here leaves its last line in the log and an exit code.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

from core.sources.engines.process import ASK, read_ask, write_answer
from core.system.errors import AprError
from core.trace.engines import ENGINES

FAILED = 3


def main(scheme: str, folder: Path) -> int:
    """Run the engine on what is asked in the folder; returns the exit code."""
    threading.Thread(target=_end_with, args=(os.getppid(), folder), daemon=True).start()
    try:
        answer, values = import_module(ENGINES[scheme].module).capture(read_ask(folder), folder)
        write_answer(folder, answer, values)
    except AprError as error:
        print(error, file=sys.stderr)
        return FAILED
    except Exception as error:  # noqa: BLE001 (any error of the child goes to the log)
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    return 0


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent has died, and remove the folder that nobody will read."""
    while os.getppid() == parent:
        time.sleep(1)
    if (folder / ASK).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(FAILED)


if __name__ == "__main__":
    code = main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an engine's own threads and destructors are not waited for
