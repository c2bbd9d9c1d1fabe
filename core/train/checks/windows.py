"""Judge what no single step shows: a gradient norm that collapses, a gradient lost in noise, values near overflow.

These gates end no run: what they see takes a window of steps, and the user decides. They are reported while it goes on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate, Outcome
from core.train.config import Plan
from core.train.log import GRADS, TRAIN
from core.train.records import Health, Step

WINDOW = 10           # steps of which the median gradient norm is taken: one batch's own noise is out of it
COLLAPSE = 0.2        # of the highest window before: sound runs end above a third of it, the published v13 fell to 1/8
TABLES = 3            # gradient tables at least, for a mean and its error
NOISE_BATCHES = 20.0  # Adam's mean spans (1 + 0.9) / (1 - 0.9) = 19 batches: less gradient than that steers nothing
DEVIATIONS = 2.0      # standard errors on each side of a mean: 95 %
HEADROOM_BITS = 64.0  # float32 and bfloat16 reach 2^128; above 2^64 a square overflows, and norms square

Judged = tuple[str, Outcome]  # measured, verdict


def norm_collapse(plan: Plan, steps: Sequence[Step], health: Sequence[Health]) -> Judged:
    """Hold each window's median gradient norm against the highest one before it, from the end of the warm-up on."""
    steps = [s for s in steps if s.step >= plan.warm_up]
    windows = [steps[at:at + WINDOW] for at in range(0, len(steps) - WINDOW + 1, WINDOW)]
    if len(windows) < 2:
        return f"{len(steps)} steps after the warm-up, two windows of {WINDOW} are needed", NOT_MEASURED
    medians = [statistics.median(s.grad_norm for s in window) for window in windows]
    falls = [(medians[i] / max(medians[:i]) if max(medians[:i]) else 0.0, i) for i in range(1, len(medians))]
    share, i = min(falls)
    text = (f"{share:.2f} x the highest window before, the lowest: {medians[i]:.3g} in steps {windows[i][0].step}.."
            f"{windows[i][-1].step}; limit {COLLAPSE:g}")
    return text, FAIL if share < COLLAPSE else PASS


def gradient_noise(plan: Plan, steps: Sequence[Step], health: Sequence[Health]) -> Judged:
    """Hold the gradient's own size against its noise, over the newer half of the tables; both are means with errors.

    Fails where no gradient is seen though one of a noise scale of NOISE_BATCHES would have been.
    """
    rows = [(h.noise_power, h.signal_power) for h in health[len(health) // 2:]
            if h.noise_power is not None and h.signal_power is not None and math.isfinite(h.noise_power)]
    if len(rows) < TABLES:
        return f"{len(rows)} of {TABLES} tables that it needs, of two sequences or more", NOT_MEASURED
    noise, signal = (statistics.fmean(column) for column in zip(*rows, strict=True))
    error = DEVIATIONS * statistics.stdev(row[1] for row in rows) / math.sqrt(len(rows))
    least, most = (_batches(plan, noise, signal + sign * error) for sign in (1, -1))
    text = f"noise scale {_said(least)} to {_said(most)} batches of {plan.step_tokens} tokens, {len(rows)} tables"
    if math.isfinite(most):
        return text, PASS
    if least <= NOISE_BATCHES:
        return f"{text}: too few to tell", NOT_MEASURED
    return f"{text}: no gradient stands out of the noise; the batch is too small or the text is noise", FAIL


def least_headroom(plan: Plan, steps: Sequence[Step], health: Sequence[Health]) -> Judged:
    """Hold the largest value of the stream, its gradient and the parameters' gradients against the type's range."""
    rows = [h for h in health if h.headroom_bits is not None]
    if not rows:
        return "no gradient table was taken", NOT_MEASURED
    worst = min(rows, key=lambda h: h.headroom_bits or 0.0)
    bits = worst.headroom_bits or 0.0
    text = f"{bits:.1f} bits at step {worst.step}: {worst.headroom_at}; limit {HEADROOM_BITS:g}"
    return text, FAIL if bits < HEADROOM_BITS else PASS


WINDOWS: tuple[tuple[str, str, Callable[[Plan, Sequence[Step], Sequence[Health]], Judged], str], ...] = (
    ("INV-COLLAPSE", "the gradient norm of a window does not collapse", norm_collapse, TRAIN),
    ("INV-NOISE", "the gradient stands out of a batch's noise", gradient_noise, GRADS),
    ("INV-HEADROOM", "the square of no value overflows", least_headroom, GRADS),
)


def judge_windows(plan: Plan, steps: Sequence[Step], health: Sequence[Health]) -> tuple[Gate, ...]:
    """Return each gate with its verdict, at any time of a run."""
    return tuple(Gate(id, rule, *judge(plan, steps, health), evidence) for id, rule, judge, evidence in WINDOWS)


def _batches(plan: Plan, noise: float, signal: float) -> float:
    return noise / signal / plan.batch if signal > 0 else math.inf


def _said(batches: float) -> str:
    return "no bound" if math.isinf(batches) else f"{batches:.3g}"
