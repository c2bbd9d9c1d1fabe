"""Run A and B in lockstep and measure B against A at every stage. It measures; judge_pair.py judges.

Six forwards walk side by side, so that values are compared and dropped: A, A with rounding-size noise (the floor), B, B
with its operations on A's values (local error apart from inherited), and the control runs of A and B, untraced.
Shapes: T tokens of the prompt, W the width of a stage, V the vocabulary. The value of a stage is [T, W], but for
logits, [1, V] of the last token, and for an engine that keeps the last tokens only: rows are counted from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torch import Tensor

from core.formats.model_file import ModelFile
from core.model.forward import forward
from core.model.lockstep import Lane, drive
from core.model.model import Tap
from core.model.stages import Place, scope_positions
from core.proof.distance import difference, relative_l2
from core.quant.activations import COMPUTES
from core.system.cancel import IsCancelled, never
from core.trace.events import CellMeasured, Emit
from core.trace.measures import CLEAR, MIN_REL_L2_FLOOR, SAME, Difference, SideName, State
from core.trace.run import SEED, Side, checksum_beside, same_bits
from core.trace.stats import Cell
from core.trace.taps import chain, jitter, record, record_values


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a pair, beside the pair itself. threshold: std ratio of a hint; control: also run untraced."""

    scope: str
    threshold: float
    emit: Emit
    cancelled: IsCancelled
    keep_values: bool = False
    control: bool = True


@dataclass(frozen=True, slots=True)
class Taken:
    """What a lockstep run leaves of one side that ran.

    logits: [1, V] of the last token, float32. same_logits: whether the control run's have the same bits; None without.
    values: place -> [T, W] on the CPU, where they were to be kept.
    """

    cells: dict[Place, Cell]
    logits: Tensor
    same_logits: bool | None
    values: dict[Place, Tensor] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """What a lockstep run leaves: each side that ran (None: its values were saved), and B against A at each place."""

    a: Taken | None
    b: Taken | None
    cells: dict[Place, Difference]


class PairMeasurer:
    """Measures B against A at a place when both values are there, over the rows that the scope covers.

    The floor of a place comes first: floors and distances of a place are taken in the order in which lanes advance.
    """

    def __init__(self, scope: str, n_token: int) -> None:
        self.cells: dict[Place, Difference] = {}
        self._scope, self._n_token = scope, n_token
        self._floors: dict[Place, float] = {}

    def measure_floor(self, place: Place, clean: Tensor, noisy: Tensor) -> None:
        """Take the floor of a place: relative L2 of the noisy value [rows, W] against the clean one."""
        rows = scope_rows(self._scope, self._n_token, len(clean))
        if rows:
            self._floors[place] = max(relative_l2(clean[rows], noisy[rows])[0], MIN_REL_L2_FLOOR)

    def measure(self, place: Place, a: Tensor, b: Tensor, made: Tensor | None = None) -> None:
        """Measure b against a, both [rows, W] on one device; made: B's operation on A's inputs."""
        rows = scope_rows(self._scope, self._n_token, len(a))
        if not rows:
            return
        first = self._n_token - len(a) + rows[0]
        a, b = a[rows], b[rows]
        cell = replace(difference(a, b, first), floor=self._floors.pop(place))
        if made is not None:
            cell = replace(cell, local=relative_l2(a, made[rows])[0], inherited=relative_l2(made[rows], b)[0])
        self.cells[place] = judged(cell)


def run_pair(a: Side, b: Side, tokens: Sequence[int], ask: Question) -> Pair:
    """Measure B against A; both must have the same widths and depth. Emits CellMeasured of both sides."""
    measurer = PairMeasurer(ask.scope, len(tokens))
    now_a, now_b = dict[Place, Tensor](), dict[Place, Tensor]()

    def noisy(layer: int | None, stage: str, value: Tensor) -> Tensor:
        measurer.measure_floor((layer, stage), now_a[layer, stage], value)
        return value

    def on_values_of_a(layer: int | None, stage: str, value: Tensor) -> Tensor:
        from_a, from_b = now_a.pop((layer, stage)).to(value), now_b.pop((layer, stage)).to(value)
        measurer.measure((layer, stage), from_a, from_b, value)
        return from_a

    watch_a, watch_b = (SideWatch(name, len(tokens), ask) for name in SideName)
    noise = jitter(unit_of(a, b), SEED)
    # each lane uses at a place what those before it have left there: the order is that of the file's docstring
    lane_a = a.lane(tokens, chain(chain(a.bug(), watch_a.tap), record_values(now_a)))
    a_noise = a.lane(tokens, chain(chain(a.bug(), noise), noisy))
    lane_b = b.lane(tokens, chain(chain(b.bug(), watch_b.tap), record_values(now_b)))
    b_on_a = Lane(forward(b.model, tokens, chain(b.bug(), on_values_of_a)), b.compute, b.threads, device=b.model.device)
    a_control, b_control = (s.lane(tokens, s.bug()) if ask.control else None for s in (a, b))
    drive_verified((lane_a, a_noise, lane_b, b_on_a, a_control, b_control), (a.model.file, b.model.file), ask.cancelled)
    return Pair(watch_a.taken(lane_a, a_control), watch_b.taken(lane_b, b_control), measurer.cells)


class SideWatch:
    """Watches one side's lane: its statistics, told as they come, and its values where they are to be kept."""

    def __init__(self, name: SideName, n_token: int, ask: Question) -> None:
        self._name, self._emit = name, ask.emit
        self._cells: dict[Place, Cell] = {}
        self._values: dict[Place, Tensor] | None = {} if ask.keep_values else None
        self.tap: Tap = record(self._on_cell, n_token, self._values)

    def _on_cell(self, place: Place, cell: Cell) -> None:
        self._cells[place] = cell
        self._emit(CellMeasured(place, cell, self._name))

    def taken(self, lane: Lane, control: Lane | None) -> Taken:
        """What was watched, once both lanes have ended."""
        same = same_logits(lane, control) if control is not None else None
        return Taken(self._cells, lane.logits, same, self._values)


def same_logits(lane: Lane, control: Lane) -> bool:
    """Say whether a watched run and its control run, both ended, gave the same bits."""
    return same_bits(lane.logits, control.logits)


def drive_verified(
    lanes: Sequence[Lane | None], files: Sequence[ModelFile], cancelled: IsCancelled, enough: IsCancelled = never
) -> None:
    """Run the lanes that are there to their end, or until enough() is true, while the files' checksums are taken."""
    with ExitStack() as checks:
        for file in {id(file): file for file in files}.values():
            checks.enter_context(checksum_beside(file))
        drive([lane for lane in lanes if lane is not None], cancelled, enough)


def unit_of(*sides: Side) -> float:
    """Relative rounding unit of the finest compute among the sides: a coarser choice shall be seen."""
    return min(COMPUTES[s.compute].unit for s in sides)


def scope_rows(scope: str, n_token: int, n_row: int) -> list[int]:
    """Rows of a stage's value (its last n_row tokens) that the scope covers."""
    return [p - (n_token - n_row) for p in scope_positions(scope, n_token) if p >= n_token - n_row]


def judged(cell: Difference) -> Difference:
    """Fill in the state by the multiple of the floor."""
    assert cell.rel_l2 is not None
    floor = cell.floor or MIN_REL_L2_FLOOR
    if cell.rel_l2 <= SAME * floor:
        return replace(cell, state=State.SAME)
    return replace(cell, state=State.UNCLEAR if cell.rel_l2 <= CLEAR * floor else State.DIFFERS)
