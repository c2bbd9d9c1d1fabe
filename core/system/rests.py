"""Name what is being written so that nobody guesses it, and sweep what a killed process left. It writes nothing.

    .NAME.MACHINE-PID-RANDOM.part     a file or folder on its way; .old: what it has replaced

A rest is ours to sweep where its owner is this user, its machine this one, and its process gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
from pathlib import Path

PART, OLD = "part", "old"
_NAME = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<pid>[0-9]+)-[0-9a-f]{16}\.(?P<ending>part|old)")
START_FIELD = 18  # of /proc/PID/stat behind the state: starttime, in clock ticks since the machine started
CLOCK_S = 2.0     # by which a file's time may lie before the start of the process that wrote it


def own_name(target: Path, ending: str) -> Path:
    """Return a name beside target that nobody has, nor can guess."""
    name = target.name[:200]  # of 255 that a name may have
    return target.with_name(f".{name}.{_machine()}-{os.getpid()}-{os.urandom(8).hex()}.{ending}")


def sweep(folder: Path) -> None:
    """Remove what killed processes of this user left in a folder; put back what they had moved aside. Never an error.

    A process that dies between two renames has left its target's old form aside and nothing in its place.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            found = _NAME.fullmatch(entry.name)
            if found is None or not _is_rest(entry, found["machine"], int(found["pid"])):
                continue
            target = folder / found["name"]
            with contextlib.suppress(OSError):
                if found["ending"] == OLD and len(found["name"]) < 200 and not os.path.lexists(target):
                    os.rename(entry.path, target)
                elif entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def is_rest_name(name: str) -> bool:
    """Whether a name is one that own_name gives."""
    return _NAME.fullmatch(name) is not None


def began(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where it is gone or a zombie, LookupError: nobody says so."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if "btime" in line)
        return None if state == "Z" else booted + int(rest[START_FIELD]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise LookupError(f"no start of process {pid}") from error


def _is_rest(entry: os.DirEntry[str], machine: str, pid: int) -> bool:
    found = entry.stat(follow_symlinks=False)
    if machine != _machine() or found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    try:
        started = began(pid)
    except LookupError:
        return False
    # a later process with the same id wrote nothing before it began
    return started is None or found.st_mtime < started - CLOCK_S


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]
