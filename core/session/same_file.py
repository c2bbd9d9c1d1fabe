"""Hold saved values to the file that is said to be theirs, by the digest of its bytes, without waiting for it first.

A header alone proves nothing: a file that was repaired, or trained on, keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from core.proof.check_result import Check
from core.proof.verdict import Comparison, Verdict
from core.session.prepare import OpenedModel
from core.system.cancel import IsCancelled
from core.system.errors import NotComparableError
from core.trace.record import Trace

OLDER = ("the bundle is older than digests of a file's bytes: whether {name} still holds the weights that it was made "
         "from is not known. Trace it again")


class OtherFileError(Exception):
    """The digest has come while a check ran, and it is that of another file."""


def check_by_identity(
    traced: Trace, model: OpenedModel, cancelled: IsCancelled, check: Callable[[IsCancelled], Check]
) -> Check:
    """Check values against a file; NotComparableError as soon as it is known to be another than they were made from.

    A trace that does not say its file is taken at the user's word.
    """
    header = traced.origin.get("header_sha256")
    if header is None or traced.identity is model.identity:
        return check(cancelled)
    if header != model.file.header_sha256:
        raise _other_file(traced, model)
    if traced.digest is None:
        return replace(check(cancelled), doubt=OLDER.format(name=model.file.path.name))
    model.identity.start()
    try:
        result = check(_until_known(traced, model, cancelled))
    except OtherFileError:
        raise _other_file(traced, model) from None
    if is_other(traced, model):
        raise _other_file(traced, model)
    return result


def by_identity(judged: Comparison, saved: Sequence[Trace], model: OpenedModel) -> Comparison | None:
    """What a verdict by a file's weights is worth for saved sides; None where one was made from another file."""
    if any(trace.digest is not None and is_other(trace, model) for trace in saved):
        return None
    if all(trace.digest is not None for trace in saved) or judged.verdict in (Verdict.AGREE, Verdict.H1):
        return judged
    doubt = OLDER.format(name=model.file.path.name)
    return replace(judged, verdict=Verdict.INCONCLUSIVE, side=None, error=None, reasons=(*judged.reasons, doubt))


def is_other(trace: Trace, model: OpenedModel) -> bool:
    """Say whether a trace that says its file was made from another one; waits for the file's digest."""
    return trace.digest != model.identity.digest()


def _until_known(traced: Trace, model: OpenedModel, cancelled: IsCancelled) -> IsCancelled:
    """The same question, which raises OtherFileError once the digest is there and differs."""
    def asked() -> bool:
        if model.identity.is_known and is_other(traced, model):
            raise OtherFileError
        return cancelled()

    return asked


def _other_file(traced: Trace, model: OpenedModel) -> NotComparableError:
    name = model.file.path.name
    return NotComparableError(f"the values of {traced.name} were made from another file than {name} is now: its bytes "
                              "differ. Give the file that they were made from, or trace again.")
