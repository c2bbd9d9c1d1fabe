"""Name the ways a run can fail, each with its exit code. Not a place for messages: the raiser writes those."""


class AprError(Exception):
    """Tell the user what was found, what was needed and what to do; `code` is the exit code."""

    code = 70


def os_reason(error: Exception) -> str:
    """What the system said, without its number and the path that the message names anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class UsageError(AprError):
    """Wrong option, plant, token or prompt; an existing bundle without --force; an extra not installed."""

    code = 2


class FileError(AprError):
    """A file that cannot be read or is not supported, or an engine that failed."""

    code = 3


class NotComparableError(AprError):
    """A comparison or check that has nothing fair to stand on."""

    code = 4


class DeviceError(AprError):
    """A device that is absent or out of memory."""

    code = 6


class OutputError(AprError):
    """A folder or file that could not be written."""

    code = 7


class Cancelled(AprError):
    """The user, a signal or a dropped line ended the run."""

    code = 130
