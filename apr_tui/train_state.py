"""Say in words how a training run at the console stands: status, phase, one sentence. It draws nothing."""

from __future__ import annotations

from collections.abc import Sequence

from apr_tui.paint import foreign
from apr_tui.status import error_note
from apr_tui.train_command import STALL_S
from apr_tui.train_panels import GONE, PAUSED, STALLED, STARTING
from apr_tui.train_worker import Training
from core.errors import AprError, Cancelled
from core.train_records import ABORTED, FAILED, INTERRUPTED, RUNNING


def state_of(training: Training) -> str:
    """The run's status in one word, as a person needs it."""
    view = training.view
    if training.is_under_way:
        if view is None or view.status != RUNNING:
            return STARTING
        return PAUSED if training.is_paused else RUNNING
    if training.error is not None:
        return INTERRUPTED if isinstance(training.error, Cancelled) else FAILED
    if view is None:
        return FAILED if training.read_error is not None else STARTING
    if view.status != RUNNING or training.is_own:
        return view.status
    if view.alive is False:
        return GONE
    return STALLED if (view.last_step_age_s or 0.0) > STALL_S else RUNNING


def phase_of(training: Training) -> str:
    """What our own run does now; nothing where it is not under way."""
    if not training.is_under_way:
        return ""
    if training.wishes.stop.is_set():
        return "stopping after the step in flight, with a checkpoint ..."
    if training.is_paused:
        return "paused; p goes on" if training.phase == "paused" else "pausing after the step in flight ..."
    return f"{training.phase} ..." if training.phase else ""


def sentence_of(training: Training, dead: Sequence[int] = ()) -> tuple[str, str]:
    """What went wrong, or how it ended, else the newest checkpoint: text and style. dead: layers without a gradient."""
    view, error = training.view, training.error or training.read_error
    if isinstance(error, Cancelled):
        return foreign(str(error)), "watch"
    if isinstance(error, AprError):
        return error_note(error)
    if dead:
        return f"X no gradient at all in layers {', '.join(map(str, dead))}: these blocks learn nothing", "bad"
    if view is None:
        return "", "text"
    if view.status != RUNNING and not training.is_under_way and view.sentence:
        return foreign(view.sentence), "bad" if view.status in (ABORTED, FAILED) else "text"
    if view.checkpoint is not None:
        return f"newest checkpoint {foreign(str(view.checkpoint))}: enter traces it", "quiet"
    return "no checkpoint yet" + (": w writes one" if training.is_under_way else ""), "quiet"
