"""Say in words how a training run stands: status, phase, age of its newest step, one sentence. It draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apr_tui.render.status import error_note
from apr_tui.style import escape_untrusted
from core.system.errors import AprError, Cancelled
from core.system.outcome import FAIL
from core.system.progress import age_text
from core.system.safe_text import safe_text
from core.train.records import ABORTED, FAILED, INTERRUPTED, RUNNING, RunView

if TYPE_CHECKING:
    from apr_tui.workers.train import Training

PAUSED, STALLED, GONE, STARTING = "PAUSED", "STALLED", "GONE", "STARTING"
STALL_S = 60.0   # a running step's age from which a run is called stalled


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
    if training.controls.stop.is_set():
        return "stopping after the step in flight, with a checkpoint ..."
    if training.is_paused:
        return "paused; p goes on" if training.phase == "paused" else "pausing after the step in flight ..."
    return f"{training.phase} ..." if training.phase else ""


def sentence_of(training: Training, dead: Sequence[int] = ()) -> tuple[str, str]:
    """What went wrong, or how it ended, else the newest checkpoint: text and style. dead: layers without a gradient."""
    view, error = training.view, training.error or training.read_error
    if isinstance(error, Cancelled):
        return escape_untrusted(str(error)), "watch"
    if isinstance(error, AprError):
        return error_note(error)
    if dead:
        return f"X no gradient at all in layers {', '.join(map(str, dead))}: these blocks learn nothing", "bad"
    if view is None:
        return "", "text"
    if view.status != RUNNING and not training.is_under_way and view.sentence:
        return escape_untrusted(view.sentence), "bad" if view.status in (ABORTED, FAILED) else "text"
    if view.checkpoint is not None:
        return f"newest checkpoint {escape_untrusted(str(view.checkpoint))}: enter traces it", "quiet"
    return "no checkpoint yet" + (": w writes one" if training.is_under_way else ""), "quiet"


def view_text(view: RunView) -> str:
    """A run's state in a few lines: how far, how fast, and how old its newest step is."""
    run, last = view.run, view.steps[-1] if view.steps else None
    steps = run["plan"]["steps"]
    status = GONE if view.status == RUNNING and view.alive is False else view.status
    lines = [f"{view.out}: {status}{' - ' + view.sentence if view.sentence else ''}"]
    if last is None:
        lines.append(f"no step of {steps} is recorded yet")
    else:
        lines.append(f"step {last.step} of {steps}, loss {last.train_loss:.4f}, grad norm {last.grad_norm:.3f}, "
                     f"lr {last.lr:.3g}, {last.wall_ms:.0f} ms, {last.tokens_per_sec:.0f} tokens/s")
        lines.append(f"last step {age_text(view.last_step_age_s)} ago{stall_text(view)}")
    if view.validations:
        lines.append(f"val_loss {view.validations[-1].val_loss:.4f} after epoch {view.validations[-1].epoch}")
    if view.gpu is not None:
        lines.append(f"GPU {view.gpu['util_pct']} %, {view.gpu['memory_mib']} MiB, {view.gpu['power_w']} W, "
                     f"{view.gpu['temperature_c']} C")
    lines += [f"{gate.verdict} {gate.id}: {gate.measured}" for gate in view.gates if gate.verdict == FAIL]
    if view.checkpoint is not None:
        lines.append(f"newest checkpoint {view.checkpoint}")
    return "\n".join(map(safe_text, lines)) + "\n"


def stall_text(view: RunView) -> str:
    """What an old step means: a process that is gone, or one that does not get on."""
    if view.status != RUNNING or view.last_step_age_s is None:
        return ""
    if view.alive is False:
        return f"; its process is gone. Go on with: apr-tui train --resume --out {view.out}"
    return "; STALLED" if view.last_step_age_s > STALL_S else ""
