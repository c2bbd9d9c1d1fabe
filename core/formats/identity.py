"""Say which file it is by its bytes: a digest of header and tensor data, taken in a thread of its own.

Path, size, times and inode are no identity; they only tell whether a digest that was kept is still that of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from pathlib import Path

from core.formats.model_file import ModelFile
from core.system.atomic_file import atomic_file
from core.system.errors import FileError
from core.system.limits import CACHE_BYTES
from core.system.paths import cache_folder, is_own, make_own
from core.system.regular_file import read_file

PIECE = 16 << 20
LEAST_KEPT_BYTES = 256 << 20  # below it a digest takes less than the blink of an eye
SETTLED_S = 2.0               # a file that was written to later may change again within one tick of its clock

Stamp = tuple[int, ...]


class Identity:
    """The digest of an opened file: taken once, from when start or digest is first called."""

    def __init__(self, file: ModelFile, stamp: Stamp | None) -> None:
        self.file, self._stamp = file, stamp
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._digest = ""

    def start(self) -> None:
        """Begin, in the background; again and again is once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._take, name="apr-digest", daemon=True)
                self._thread.start()

    @property
    def is_known(self) -> bool:
        """Whether digest would return at once."""
        return self._digest != ""

    def digest(self) -> str:
        """Return the digest, waiting for it."""
        self.start()
        assert self._thread is not None
        self._thread.join()
        assert self._digest, "the thread that takes the digest has failed"
        return self._digest

    def _take(self) -> None:
        stamp = self._stamp if self.file.size_bytes >= LEAST_KEPT_BYTES else None
        kept = _kept(self.file.path) if stamp is not None else None
        # a file in several parts has a stamp of one of them only
        stamp = None if stamp is not None and stamp[0] != self.file.size_bytes else stamp
        if kept is not None and kept[0] == stamp:
            self._digest = kept[1]
            return
        digest = digest_of(self.file)
        if stamp is not None and stamp == stamp_of(self.file.path) and time.time() - stamp[1] / 1e9 > SETTLED_S:
            _keep(self.file.path, stamp, digest)
        self._digest = digest


def digest_of(file: ModelFile) -> str:
    """Hash the header, and each tensor's name, type, shape and bytes; some 1 GB a second."""
    found = hashlib.blake2b(file.header_sha256.encode(), digest_size=32)
    for name, weight in sorted(file.weights.items()):
        found.update(f"{name} {weight.quant} {weight.shape}".encode(errors="surrogateescape"))
        for at in range(0, len(weight.data), PIECE):
            found.update(weight.data[at:at + PIECE].data)
    return f"blake2b:{found.hexdigest()}"


def stamp_of(path: Path) -> Stamp | None:
    """What changes when a file is written to: size, times in ns, inode; taken before the file is opened."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _home(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:24]
    return cache_folder() / "digests" / f"{name}.json"


def _kept(path: Path) -> tuple[Stamp, str] | None:
    """The digest that was kept of a path, and the stamp that the file had; None where none can be read."""
    with contextlib.suppress(FileError, ArithmeticError, ValueError, TypeError, KeyError, RecursionError):
        if not is_own(home := _home(path)):
            return None
        said = json.loads(read_file(home, CACHE_BYTES, ""))
        return tuple(int(n) for n in said["stamp"]), str(said["digest"])
    return None


def _keep(path: Path, stamp: Stamp, digest: str) -> None:
    """A cache that cannot be written is no error: the digest is then taken anew."""
    home = _home(path)
    with contextlib.suppress(OSError):
        make_own(home.parent)
        with atomic_file(home) as part:
            part.write_text(json.dumps({"stamp": stamp, "digest": digest}), encoding="ascii")
