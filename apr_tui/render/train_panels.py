"""Turn a run as it was read from its folder into lines: title, charts, GPU, gates. Pure; nothing of torch.

A figure that nobody measured says so: it is never drawn as 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apr_tui.render.title import push_right
from apr_tui.render.train_state import GONE, PAUSED, STALLED, STARTING
from apr_tui.style import STATES, Rows, Span, crop, escape_untrusted, fit, spans_width, to_terminal_charset, wrap
from apr_tui.widgets.chart import axis_steps, chart
from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate
from core.system.progress import age_text
from core.trace.finding import BAD, OK, UNKNOWN, WATCH
from core.train.checks.windows import judge_windows
from core.train.config import plan_of
from core.train.records import ABORTED, DONE, FAILED, INTERRUPTED, RUNNING, RunView, Step

STATUS_MARKS = {RUNNING: OK, DONE: OK, PAUSED: WATCH, STALLED: WATCH, INTERRUPTED: WATCH, STARTING: OK, GONE: BAD,
                ABORTED: BAD, FAILED: BAD}
GATE_MARKS = {PASS: OK, FAIL: BAD, NOT_MEASURED: UNKNOWN}
VERDICT_WORDS = {PASS: "pass", FAIL: "FAIL", NOT_MEASURED: "not measured"}
NOT = "not measured"
RECENT = 20  # steps whose median time gives the rest of the run
GPU_LINES, GATE_LINES = 4, 5
TWO_COLUMNS, ALL_LINES = 70, 17  # less than this shows less
GPU_FIGURES = (  # lines of (word, field of the sample, divisor, unit, decimals)
    (("util", "util_pct", 1, "%", 0), ("mem", "memory_mib", 1024, " GiB", 1), ("own", "own_mib", 1024, " GiB", 1)),
    (("power", "power_w", 1, " W", 0), ("clock", "sm_mhz", 1, " MHz", 0), ("temp", "temperature_c", 1, " C", 0)),
)


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: the field of Step, its title, how its newest value is written, whether a far value is clipped."""

    field: str
    title: str
    form: str
    clips: bool = True
    has_validation: bool = False


LOSS = Chart("train_loss", "loss", "{:.4f}", clips=False, has_validation=True)
NORM = Chart("grad_norm", "grad norm", "{:.3f}")
RATE = Chart("lr", "lr", "{:.3g}", clips=False)
SPEED = Chart("tokens_per_sec", "tokens/s", "{:.0f}")
WALL = Chart("wall_ms", "wall_ms", "{:.1f}")


def title_spans(view: RunView | None, state: str, owner: str, memory: str, width: int) -> list[Span]:
    """Config, device, step of steps, what is left, status."""
    mark, right = STATUS_MARKS.get(state, UNKNOWN), f"{owner}  {memory} "
    glyph = "" if mark == OK else f"{mark} "
    front: list[Span] = [(" train ", "quiet")]
    if view is not None:
        plan, done = view.run["plan"], steps_done(view)
        front += [(f"{escape_untrusted(str(plan['config']))}", "title"),
                  (f"  {escape_untrusted(str(view.run['device']))}  ", "text"),
                  (f"{done} of {plan['steps']} steps", "title")]
        left = time_left(view) if state == RUNNING else None
        front += [(f"  ETA {left}", "text")] if left else []
    front.append((f"  {glyph}{state}", STATES[mark][1]))
    return push_right(front, right, width) if spans_width(front) + len(right) <= width else crop(front, width)


def steps_done(view: RunView) -> int:
    """Optimizer steps that are recorded."""
    return view.steps[-1].step + 1 if view.steps else 0


def time_left(view: RunView) -> str | None:
    """How long the rest takes at the pace of the newest steps; None before the first step."""
    if not view.steps:
        return None
    pace = statistics.median(s.wall_ms for s in view.steps[-RECENT:]) / 1000
    whole = round(pace * (view.run["plan"]["steps"] - steps_done(view)))
    if whole < 3600:
        return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def body_lines(view: RunView, width: int, height: int) -> Rows:
    """Charts, GPU and gates in two columns."""
    if width < TWO_COLUMNS or height < ALL_LINES:
        return _few_lines(view, width, height)
    left, right = (width - 1) // 2, width - 1 - (width - 1) // 2
    rest, low = height - GPU_LINES - GATE_LINES, (height - 9) // 3 + 1
    first = _chart(LOSS, view, left, height - 2 * low)
    first += [*_chart(NORM, view, left, low), *_chart(RATE, view, left, low)]
    second = [*_chart(SPEED, view, right, rest // 2), *_chart(WALL, view, right, rest - rest // 2),
              *gpu_lines(view, right), *gate_lines(view, right)]
    return [[*crop(a, left), (" ", "quiet"), *crop(b, right)] for a, b in zip(first, second, strict=False)]


def _few_lines(view: RunView, width: int, height: int) -> Rows:
    """Where there is no room for all: the chart of the loss, and the others' newest figures."""
    rest: Rows = []
    for of in (NORM, RATE, SPEED, WALL):
        value = of.form.format(getattr(view.steps[-1], of.field)) if view.steps else "no step yet"
        rest.append([(f" {of.title} ", "title"), (value, "a")])
    rest += [gpu_lines(view, width)[0], gate_lines(view, width)[0]]
    rest = [crop(line, width) for line in rest][:max(height - 3, 0)]
    return [*_chart(LOSS, view, width, height - len(rest)), *rest]


def _chart(of: Chart, view: RunView, width: int, height: int) -> Rows:
    """A line of words over a chart."""
    points = [(s.step, float(getattr(s, of.field))) for s in view.steps]
    title: list[Span] = [(f" {of.title} ", "title")]
    marks: list[tuple[float, float]] = []
    if points:
        title.append((of.form.format(points[-1][1]), "a"))
    if of.has_validation and view.validations:
        marks = [(v.steps_done - 1, v.val_loss) for v in view.validations]
        newest = view.validations[-1]
        title += [("  o", "b"), (f" val {newest.val_loss:.4f}", "b"), (f" after {newest.steps_done}", "quiet")]
    if not points:
        title.append(("no step yet", "quiet"))
    n_step = axis_steps(steps_done(view), view.run["plan"]["steps"])
    axis = f"steps 0..{n_step - 1}"
    if spans_width(title) + len(axis) < width:
        title = push_right(title, axis, width, "rule")
    return [title, *chart(points, marks, n_step, width, max(height - 1, 1), of.clips)]


def gpu_lines(view: RunView, width: int) -> Rows:
    """The newest NVML sample and how old it is; what the driver did not say is not measured."""
    sample, newest = view.gpu, view.steps[-1] if view.steps else None
    title: list[Span] = [(" GPU ", "title")]
    if sample is None:
        why = why_no_gpu(view)
        return [[*title, (f"{UNKNOWN} {NOT}", STATES[UNKNOWN][1])],
                *([(f" {part}", "quiet")] for part in (wrap(why, width - 2) + [""] * GPU_LINES)[:GPU_LINES - 1])]
    title.append((f"sampled {sample_age(view, newest)}", "quiet"))
    lines, unknown = [title], []
    for figures in GPU_FIGURES:
        spans: list[Span] = []
        for word, field, divisor, unit, decimals in figures:
            value = sample.get(field)
            if value is None:
                unknown.append(word)
            else:
                spans += [(f" {word} ", "quiet"), (f"{value / divisor:.{decimals}f}{unit} ", "text")]
        lines += [spans] if spans else []
    if unknown:
        parts = wrap(f"{UNKNOWN} {NOT}: {', '.join(unknown)}", width - 2)
        lines += [[(f" {part}", STATES[UNKNOWN][1])] for part in parts]
    return [*lines, *([] for _ in range(GPU_LINES - len(lines)))][:GPU_LINES]


def why_no_gpu(view: RunView) -> str:
    """Why there is no sample."""
    said = (view.run.get("residency") or {}).get("why_not")
    if said:
        return escape_untrusted(str(said))
    on_cpu = str(view.run.get("device", "")).startswith("cpu")
    return f"device cpu: {escape_untrusted(str(view.run.get('device_reason', '')))}" if on_cpu else "no sample yet"


def sample_age(view: RunView, newest: Step | None) -> str:
    """How old the sample is now: its age at the newest step, and that step's."""
    if newest is None or newest.gpu_age_ms is None or view.last_step_age_s is None:
        return "at an unknown time"
    return f"{age_text(newest.gpu_age_ms / 1000 + view.last_step_age_s)} ago"


def live_gates(view: RunView) -> tuple[Gate, ...]:
    """The gates that can be judged while a run goes on: those of a window of steps; none of another build's plan."""
    try:
        return judge_windows(plan_of(view.run["plan"]), view.steps, view.health)
    except (KeyError, TypeError):
        return ()


def gate_lines(view: RunView, width: int) -> Rows:
    """How many gates hold, and those that do not; before the end, those of windows."""
    gates = view.gates
    if not gates:
        lines = [[(" gates ", "title"), (f"{UNKNOWN} the others when the run ends", STATES[UNKNOWN][1])],
                 *(gate_spans(gate, width) for gate in live_gates(view))]
        return [*lines, *([] for _ in range(GATE_LINES - len(lines)))]
    counts = {verdict: sum(gate.verdict == verdict for gate in gates) for verdict in (PASS, FAIL, NOT_MEASURED)}
    title: list[Span] = [(" gates ", "title"), (f"{OK} {counts[PASS]} pass ", "text"),
                         (f"{BAD} {counts[FAIL]} FAIL " if counts[FAIL] else "", "bad"),
                         (f"{UNKNOWN} {counts[NOT_MEASURED]} {NOT}", STATES[UNKNOWN][1])]
    ordered = sorted(gates, key=lambda gate: (FAIL, NOT_MEASURED, PASS).index(gate.verdict))
    lines = [title, *(gate_spans(gate, width) for gate in ordered[:GATE_LINES - 1])]
    if len(gates) > GATE_LINES - 1:
        lines[-1] = [(f" {len(gates) - GATE_LINES + 2} more: ", "quiet"), ("g", "key")]
    return [*lines, *([] for _ in range(GATE_LINES - len(lines)))]


def gate_spans(gate: Gate, width: int) -> list[Span]:
    """One gate: glyph, word, id, what was measured."""
    mark = GATE_MARKS.get(gate.verdict, UNKNOWN)
    name = STATES[mark][1]
    word = VERDICT_WORDS.get(gate.verdict, escape_untrusted(gate.verdict))
    known: list[Span] = [(f"{escape_untrusted(gate.id)} ", "text"), (escape_untrusted(gate.measured), "quiet")]
    return crop([(f" {mark} {word} ", name), *known], width)


def gates_page(view: RunView | None, notes: Sequence[str], width: int) -> Rows:
    """The page of the gates: verdict, rule, what was measured, the file that shows it; then what the run is."""
    lines: Rows = [[]]
    if view is None or not view.gates:
        lines.append([(f" {UNKNOWN} These can be judged now; the others when the run ends.", "quiet")])
    for gate in (view.gates or live_gates(view)) if view is not None else ():
        mark = GATE_MARKS.get(gate.verdict, UNKNOWN)
        word = VERDICT_WORDS.get(gate.verdict, escape_untrusted(gate.verdict))
        lines.append([(f" {mark} {word:<13}", STATES[mark][1]), (escape_untrusted(gate.id), "title"),
                      (f"  {escape_untrusted(gate.evidence)}", "quiet")])
        for text, name in ((gate.rule, "text"), (gate.measured, "quiet")):
            lines += [[(f"{'':16} {part}", name)] for part in wrap(escape_untrusted(text), max(width - 18, 20))]
    lines += [[], [(" The run", "title")]]
    for word, text in _facts(view, notes):
        for i, part in enumerate(wrap(escape_untrusted(text), max(width - 16, 20))):
            lines.append([(f"  {word if i == 0 else '':<12} ", "quiet"), (part, "text")])
    return lines


def _facts(view: RunView | None, notes: Sequence[str]) -> list[tuple[str, str]]:
    if view is None:
        return [("note", note) for note in notes]
    run: Any = view.run
    plan = run["plan"]
    facts = [
        ("folder", str(view.out)), ("command", str(run.get("command", ""))),
        ("device", f"{run['device']}: {run.get('device_reason', '')}; {run.get('device_name', '')}"),
        ("parameters", f"{run.get('parameters', '?')}"),
        ("batch", f"{plan['batch']} x {plan['seq']} tokens a step"), ("seed", str(plan["seed"])),
        ("parallel", str(run.get("parallel", ""))), ("compile", str(run.get("compile", ""))),
    ]
    known = [*plan.get("reasons", ()), *(run.get("corpus") or {}).get("notes", ())]
    return [*((word, text) for word, text in facts if text), *(("note", note) for note in known)]


def waiting_lines(phase: str, notes: Sequence[str], width: int) -> Rows:
    """What stands in for the charts before the run has a folder."""
    lines: Rows = [[], [(f" {fit(escape_untrusted(phase), width - 2)}", "text")], []]
    for note in notes:
        lines += [[(f"   {part}", "quiet")] for part in wrap(to_terminal_charset(escape_untrusted(note)), width - 4)]
    return lines
