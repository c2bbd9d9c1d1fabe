"""Force what was written to the disk, and exchange two names at once. APR_TUI_NO_FSYNC=1 leaves the forcing out.

A file that is renamed before its bytes are on the disk may be empty after a power cut; a rename that is not, undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

NO_FSYNC = "APR_TUI_NO_FSYNC"  # for tests, and for who needs speed more than the file
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2  # linux/fs.h; sys/stdio.h of macOS


def sync(path: Path) -> None:
    """Force a file to the disk, or a folder: the names in it. A file system that cannot sync a folder is let be."""
    if os.environ.get(NO_FSYNC):
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Force a folder and all in it to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def exchange(left: Path, right: Path) -> bool:
    """Exchange what two names stand for, at once; False where the system or the file system has no such call."""
    libc, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(left), os.fsencode(right))
    if sys.platform == "darwin":
        call, words = getattr(libc, "renamex_np", None), (*names, ctypes.c_uint(_RENAME_SWAP))
    else:
        here, how = ctypes.c_int(_AT_FDCWD), ctypes.c_uint(_RENAME_EXCHANGE)
        call, words = getattr(libc, "renameat2", None), (here, names[0], here, names[1], how)
    if call is None:
        return False
    if call(*words) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(right))
