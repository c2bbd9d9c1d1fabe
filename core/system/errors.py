"""Name the ways a run can fail, each with its exit code. Messages are the raiser's, but for what nobody foresaw."""

import errno
import os

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class AprError(Exception):
    """Tell the user what was found, what was needed and what to do; `code` is the exit code."""

    code = 70


def os_reason(error: Exception) -> str:
    """What the system or a library said, without a full stop, its number and the path that the message names anyway."""
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).removesuffix(".")


class UsageError(AprError):
    """Wrong option, plant, token or prompt; an existing bundle without --force; an extra not installed."""

    code = 2


class FileError(AprError):
    """A file that cannot be read or is not supported, or an engine that failed."""

    code = 3


class ArchError(FileError):
    """A model file whose architecture this build does not run; another engine may."""


class NotComparableError(AprError):
    """A comparison or check that has nothing fair to stand on."""

    code = 4


class DeviceError(AprError):
    """A device that is absent or out of memory."""

    code = 6


class OutputError(AprError):
    """A folder or file that could not be written."""

    code = 7


def system_error(error: OSError) -> FileError | OutputError:
    """What the system refused where nobody foresaw it: a reading, unless its number is one that only writing has."""
    named = None if error.filename is None else os.fsdecode(error.filename)
    if error.errno in WRITING:
        return OutputError(f"{named or 'the output'} could not be written: {os_reason(error)}. Give another place.")
    if named is None:
        return FileError(f"the system refused: {os_reason(error)}.")
    return FileError(f"{named} could not be read: {os_reason(error)}. Check the path and its permissions.")


class FileCut(BaseException):
    """A mapped file was cut while it was read: numbers since then are of nothing. No Exception: nobody may go on.

    Whoever catches it tells mapped_file.cut_error.
    """


class Cancelled(AprError):
    """The user, a signal or a dropped line ended the run."""

    code = 130
