"""Run A and B in lockstep and measure B against A at every stage. It measures; judge_pair.py judges.

Forwards run in lockstep, so that values are compared and dropped: A, B, B with its operations on A's values (local
error apart from inherited), and the control runs of A and B, untraced. Where both sides compute alike a cell differs by
its local error, whatever the compute; where their arithmetic differs, by the floor that a sixth forward measures: A
with rounding-size noise.
Shapes: T tokens of the prompt, W the width of a stage, V the vocabulary. The value of a stage is [T, W], but for
logits, [1, V] of the last token, and for an engine that keeps the last tokens only: rows are counted from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torch import Tensor

from core.formats.model_file import ModelFile
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Tap
from core.model.stages import Place, scope_positions
from core.proof.distance import difference, relative_l2
from core.quant.activations import COMPUTES
from core.system.cancel import IsCancelled, never
from core.trace.events import CellMeasured, Emit
from core.trace.measures import MIN_REL_L2_FLOOR, NOISE_MULTIPLE, PROOF_MULTIPLE, Difference, SideName, State
from core.trace.run import SEED, Side, checksum_beside, same_bits
from core.trace.stats import Cell
from core.trace.taps import add_noise, chain, record, record_values


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What is asked of a pair, beside the pair itself. threshold: std ratio of a hint; control: also run untraced."""

    scope: str
    threshold: float
    emit: Emit
    cancelled: IsCancelled
    keep_values: bool = False
    control: bool = True


@dataclass(frozen=True, slots=True)
class SideMeasurement:
    """What a lockstep run leaves of one side that ran.

    logits: [1, V] of the last token, float32. same_logits: whether the control run's have the same bits; None without.
    values: place -> [T, W] on the CPU, where they were to be kept.
    """

    cells: dict[Place, Cell]
    logits: Tensor
    same_logits: bool | None
    values: dict[Place, Tensor] | None


@dataclass(frozen=True, slots=True)
class PairMeasurement:
    """What a lockstep run leaves: each side that ran (None: its values were saved), and B against A at each place.

    alike: the cells are judged by their local error.
    """

    a: SideMeasurement | None
    b: SideMeasurement | None
    cells: dict[Place, Difference]
    alike: bool = False


class PairMeasurer:
    """Measures B against A at a place when both values are there, over the rows that the scope covers.

    alike: each side computes as the other, so that a cell differs by its local error; cells then come in order of
    computation. Else the floor of a place comes before its distance, in the order in which runs advance.
    """

    def __init__(self, scope: str, n_token: int, *, alike: bool = False) -> None:
        self.cells: dict[Place, Difference] = {}
        self.alike = alike
        self._scope, self._n_token = scope, n_token
        self._floors: dict[Place, float] = {}
        self._is_parted = False  # some value before, in the scope or out of it, has a local error

    def measure_floor(self, place: Place, clean: Tensor, noisy: Tensor) -> None:
        """Take the floor of a place: relative L2 of the noisy value [rows, W] against the clean one."""
        rows = scope_rows(self._scope, self._n_token, len(clean))
        if rows:
            self._floors[place] = max(relative_l2(clean[rows], noisy[rows])[0], MIN_REL_L2_FLOOR)

    def measure(
        self, place: Place, a: Tensor, b: Tensor, made: Tensor | None = None, of: SideName = SideName.A
    ) -> None:
        """Measure b against a, both [rows, W] on one device; made: the other side's operation on the inputs of `of`."""
        own, other = (a, b) if of is SideName.A else (b, a)
        if self.alike and made is not None:
            self._is_parted |= relative_l2(own, made)[0] > PROOF_MULTIPLE * MIN_REL_L2_FLOOR
        rows = scope_rows(self._scope, self._n_token, len(a))
        if not rows:
            return
        first = self._n_token - len(a) + rows[0]
        floor = MIN_REL_L2_FLOOR if self.alike else self._floors.pop(place)
        cell = replace(difference(a[rows], b[rows], first), floor=floor)
        if made is not None:
            cell = replace(cell, local=relative_l2(own[rows], made[rows])[0],
                           inherited=relative_l2(made[rows], other[rows])[0])
        self.cells[place] = judged_locally(cell, self._is_parted) if self.alike else classify(cell)


def run_pair(a: Side, b: Side, tokens: Sequence[int], ask: CompareOptions) -> PairMeasurement:
    """Measure B against A; both must have the same widths and depth. Emits CellMeasured of both sides."""
    measurer = PairMeasurer(ask.scope, len(tokens), alike=compute_alike(a, b))
    now_a, now_b = dict[Place, Tensor](), dict[Place, Tensor]()

    def noisy(layer: int | None, stage: str, value: Tensor) -> Tensor:
        measurer.measure_floor((layer, stage), now_a[layer, stage], value)
        return value

    def on_values_of_a(layer: int | None, stage: str, value: Tensor) -> Tensor:
        from_a, from_b = now_a.pop((layer, stage)).to(value), now_b.pop((layer, stage)).to(value)
        measurer.measure((layer, stage), from_a, from_b, value)
        return from_a

    watch_a, watch_b = (SideWatch(name, len(tokens), ask) for name in SideName)
    # each run uses at a place what those before it have left there: the order is that of the file's docstring
    run_a = a.forward_run(tokens, chain(chain(a.bug(), watch_a.tap), record_values(now_a)))
    a_noise = None if measurer.alike else a.forward_run(
        tokens, chain(chain(a.bug(), add_noise(unit_of(a, b), SEED)), noisy))
    run_b = b.forward_run(tokens, chain(chain(b.bug(), watch_b.tap), record_values(now_b)))
    b_on_a = b.forward_run(tokens, chain(b.bug(), on_values_of_a))
    a_control, b_control = (s.forward_run(tokens, s.bug()) if ask.control else None for s in (a, b))
    run_verified((run_a, a_noise, run_b, b_on_a, a_control, b_control), (a.model.file, b.model.file), ask.cancelled)
    return PairMeasurement(watch_a.measured(run_a, a_control), watch_b.measured(run_b, b_control), measurer.cells,
                           measurer.alike)


class SideWatch:
    """Watches one side's run: its statistics, emitted as they come, and its values where they are to be kept."""

    def __init__(self, name: SideName, n_token: int, ask: CompareOptions) -> None:
        self._name, self._emit = name, ask.emit
        self._cells: dict[Place, Cell] = {}
        self._values: dict[Place, Tensor] | None = {} if ask.keep_values else None
        self.tap: Tap = record(self._on_cell, n_token, self._values)

    def _on_cell(self, place: Place, cell: Cell) -> None:
        self._cells[place] = cell
        self._emit(CellMeasured(place, cell, self._name))

    def measured(self, run: ForwardRun, control: ForwardRun | None) -> SideMeasurement:
        """What was watched, once both runs have ended."""
        same = same_logits(run, control) if control is not None else None
        return SideMeasurement(self._cells, run.logits, same, self._values)


def same_logits(run: ForwardRun, control: ForwardRun) -> bool:
    """Say whether a watched run and its control run, both ended, gave the same bits."""
    return same_bits(run.logits, control.logits)


def run_verified(
    runs: Sequence[ForwardRun | None], files: Sequence[ModelFile], cancelled: IsCancelled, enough: IsCancelled = never
) -> None:
    """Run those that are there to their end, or until enough() is true, while the files' checksums are taken."""
    with ExitStack() as checks:
        for file in {id(file): file for file in files}.values():
            checks.enter_context(checksum_beside(file))
        run_lockstep([run for run in runs if run is not None], cancelled, enough)


def compute_alike(a: Side, b: Side) -> bool:
    """Say whether two sides compute alike: in one compute, on one device."""
    return (a.compute, a.model.device, a.model.kv) == (b.compute, b.model.device, b.model.kv)


def unit_of(*sides: Side) -> float:
    """Relative rounding unit of the finest compute among the sides: a coarser choice shall be seen."""
    return min(COMPUTES[s.compute].unit for s in sides)


def scope_rows(scope: str, n_token: int, n_row: int) -> list[int]:
    """Rows of a stage's value (its last n_row tokens) that the scope covers."""
    return [p - (n_token - n_row) for p in scope_positions(scope, n_token) if p >= n_token - n_row]


def classify(cell: Difference) -> Difference:
    """Fill in the state by the multiple of the floor."""
    assert cell.rel_l2 is not None
    return replace(cell, state=_state_of(cell.rel_l2 / (cell.floor or MIN_REL_L2_FLOOR)))


def judged_locally(cell: Difference, is_parted: bool) -> Difference:
    """Fill in the state by the local error; after a local error of this place or before it, by what came of it, too."""
    assert cell.local is not None
    own = replace(cell, state=_state_of(cell.local / MIN_REL_L2_FLOOR))
    return own if own.state is State.DIFFERS or not is_parted else classify(cell)


def _state_of(multiple: float) -> State:
    return State.SAME if multiple <= NOISE_MULTIPLE else State.UNCLEAR if multiple <= PROOF_MULTIPLE else State.DIFFERS
