"""Start other processes: a Python of our own, which is asked in JSON and answers, and programs of the system.

The one way to start one. No Python child sees the working folder: -P, and PYTHONSAFEPATH for processes of its own; a
json.py there is never imported. No program is taken from a relative entry of PATH.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

Child = subprocess.Popen[bytes]
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG (linux/prctl.h)
ROOT = Path(__file__).resolve().parents[2]  # where this very core lies, installed or not


def find_program(name: str) -> str | None:
    """Where a program of the system lies, None where there is none; a name with a path in it is taken as it is."""
    paths = filter(os.path.isabs, os.environ.get("PATH", os.defpath).split(os.pathsep))
    return shutil.which(name, path=os.pathsep.join(paths))


def run_program(words: Sequence[str], seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system to its end, with more in its environment; OSError, subprocess.SubprocessError."""
    program = find_program(words[0])
    if program is None:
        raise FileNotFoundError(f"{words[0]} is not on the path")
    return subprocess.run([program, *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=seconds, errors="replace", env={**os.environ, **more}, check=False)


def child_command(module: str) -> tuple[str, ...]:
    """The words that run a module of ours; more may follow."""
    return (sys.executable, "-P", "-X", "utf8", "-m", module)


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment and more, with this very core first on the path, and nothing relative there."""
    paths = [str(ROOT), *filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def fork() -> int:
    """Fork this process, which has no threads yet: 0 in the child, which ends with its parent; OSError."""
    child = os.fork()
    if child == 0 and sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    return child


def start_apart(command: tuple[str, ...], log: IO[Any], env: dict[str, str]) -> Child:
    """Start a process in a session of its own, all its words going to a log; OSError where it does not start."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)


def ask_child(module: str, question: object) -> Child:
    """Start a module that calls answer; OSError where it does not start."""
    child = subprocess.Popen(child_command(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=child_environment())
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as file:  # a child that has died shows in take_answer
        file.write(json.dumps(question).encode())
    child.stdin = None
    return child


def take_answer(child: Child, seconds: float) -> Any:  # noqa: ANN401 (a document is any value)
    """Wait for the answer. TimeoutError: it took longer and was ended; ValueError: it ended without one."""
    try:
        return json.loads(child.communicate(timeout=seconds)[0])
    except subprocess.TimeoutExpired as error:
        child.kill()
        child.wait()
        raise TimeoutError(f"no answer in {seconds:g} s") from error


def answer(reply: Callable[[Any], object]) -> None:
    """In the child: answer the one question."""
    sys.stdout.write(json.dumps(reply(json.loads(sys.stdin.buffer.read()))))
