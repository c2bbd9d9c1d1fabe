"""The command apr-tui: read the words, run one command, leave with its exit code.

Not here: any work; each command has a file of its own. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from apr_tui.cli import commands
from apr_tui.cli.launch import ConsoleArguments, open_console, request_of
from apr_tui.parent import go_on_in_child
from apr_tui.shutdown import on_cut_files, on_signals
from core.system.errors import AprError, Cancelled, FileCut, FileError, system_error
from core.system.gpu_errors import device_error
from core.system.limits import MESSAGE_BYTES
from core.system.mapped_file import cut_error, cut_files
from core.system.paths import state_folder
from core.system.safe_text import SafeStream, safe_lines

INTERRUPTED, INTERNAL = 130, 70
AGAIN_S = 1.0  # a signal sooner after one is the same one (timeout sends two), and must not break what cleans up
_INTERRUPTS: list[float] = []  # when signals came


def main(argv: Sequence[str] | None = None) -> int:
    """Run apr-tui with these words (default: the process's) and return its exit code."""
    code = _main(list(sys.argv[1:] if argv is None else argv), argv is None)
    if argv is None:  # all is said and written: what comes while Python ends would show a traceback, or kill
        on_signals(signal.SIG_IGN)
    return code


def _main(words: list[str], is_process: bool) -> int:
    _INTERRUPTS.clear()
    _ready_streams()
    try:
        on_signals(_interrupt)  # from here on one may come, in the imports that follow too
        if not on_cut_files(_cut) and is_process and "--no-mmap" not in words:
            go_on_in_child()
        code = _run(words)
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Cancelled):
        return _interrupted()
    except (AprError, FileCut) as error:
        is_cut = isinstance(error, FileCut) or (isinstance(error, FileError) and bool(cut_files()))
        told = cut_error() if is_cut else error
        assert isinstance(told, AprError)
        _tell(f"apr-tui: {told}")
        return told.code
    except BrokenPipeError:  # stdout was closed by its reader: nothing can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except OSError as error:
        refused = device_error(error) or system_error(error)
        _tell(f"apr-tui: {refused}")
        return refused.code
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 (any other, a library's panic too: a log is written, no traceback shown)
        if _INTERRUPTS:  # it broke an import, which raised an error of its own
            return _interrupted()
        failed = device_error(error)
        if failed is not None:
            _tell(f"apr-tui: {failed}")
            return failed.code
        _tell(f"apr-tui: internal error ({type(error).__name__}); the log is {write_log(error)}")
        return INTERNAL


def write_log(error: BaseException) -> Path:
    """Write the traceback to a file of the user's state folder, or of the temporary folder, and return its path."""
    import tempfile

    name = f"apr-tui-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    text = "".join(traceback.format_exception(error))
    for folder in (state_folder(), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # the temporary folder is everybody's: a name that is taken there, by a link too, is not ours
            path = folder / f"{name}-{os.urandom(6).hex()}.log"
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:  # it may quote any file name
                file.write(text)
            return path
    return Path(os.devnull)


def _run(words: list[str]) -> int:
    if words and words[0] in commands.COMMANDS:
        return commands.run(words[0], words[1:])
    arguments = commands.read_console(words, ConsoleArguments())
    if arguments.version:
        from importlib.metadata import version

        print(f"apr-tui {version('apr-tui')}")
        return 0
    commands.settle_mapping(arguments)
    return open_console(request_of(arguments))


def _ready_streams() -> None:
    """Open the null device for a stream that the caller closed (>&-), and let stdout escape what it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (it stays open to the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's words may be of any script, a terminal's not
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), SafeStream):
            setattr(sys, name, SafeStream(getattr(sys, name)))


def _cut(number: int, frame: FrameType | None) -> None:
    raise FileCut


def _interrupted() -> int:
    """Say it, and have the process end with its exit code.

    CPython remembers an interrupt that has left an exec of text, as imports use it, and ends `python -m` by the signal
    whatever was caught since (3.11, run_eval_code_obj); the next exec forgets it.
    """
    exec("")
    _tell("apr-tui: interrupted")
    return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    _INTERRUPTS.append(time.monotonic())
    if len(_INTERRUPTS) == 1 or _INTERRUPTS[-1] - _INTERRUPTS[-2] > AGAIN_S:
        raise KeyboardInterrupt


def _tell(message: str) -> None:
    """Say it on stderr, line by line, with whatever came from a file made safe, and no more than can be read."""
    with contextlib.suppress(OSError, ValueError):
        print(safe_lines(message, MESSAGE_BYTES), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
