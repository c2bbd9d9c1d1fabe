"""Run A and B in lockstep and measure B against A at every stage. It measures; judge_pair.py judges.

Six forwards walk side by side, so that values are compared and dropped: A, A with rounding-size noise (the floor), B, B
with its operations on A's values (local error apart from inherited), and the witnesses of A and B, untraced.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from core.model.forward import forward
from core.model.lockstep import Lane, drive
from core.model.stages import Place, scope_positions
from core.proof.distance import difference, relative_l2
from core.quant.activations import COMPUTES
from core.system.cancel import IsCancelled
from core.trace.events import Emit, Event
from core.trace.measures import CLEAR, SAME, Difference
from core.trace.run import Side, same_bits, verifying
from core.trace.stats import Cell
from core.trace.taps import chain, jitter, record, record_values

LEAST_FLOOR = 1e-6  # relative L2: rounding of float32 (1.2e-7) through one stage's sums of thousands of products


@dataclass(slots=True)
class Pair:
    """What a lockstep run leaves. logits: of A and of B; witnesses: whether untraced logits are the same."""

    a: dict[Place, Cell]
    b: dict[Place, Cell]
    cells: dict[Place, Difference]
    logits: tuple[Tensor, Tensor]
    witnesses: tuple[bool | None, bool | None]


def run_pair(
    a: Side, b: Side, tokens: Sequence[int], *, scope: str, seed: int, witness: bool = True, emit: Emit,
    keep: tuple[dict[Place, Tensor], dict[Place, Tensor]] | None = None, cancelled: IsCancelled,
) -> Pair:
    """Measure B against A; both must have the same widths and depth. Emits cell events of both sides."""
    n_token, now_a, now_b = len(tokens), dict[Place, Tensor](), dict[Place, Tensor]()
    floors: dict[Place, float] = {}
    cells: dict[Place, Difference] = {}

    def noisy(layer: int | None, stage: str, value: Tensor) -> Tensor:
        rows = scope_rows(scope, n_token, len(value))
        if rows:
            floors[layer, stage] = max(relative_l2(now_a[layer, stage][rows], value[rows])[0], LEAST_FLOOR)
        return value

    def local(layer: int | None, stage: str, value: Tensor) -> Tensor:
        place = (layer, stage)
        from_a, from_b = now_a.pop(place), now_b.pop(place).to(value)
        source = from_a.to(value)
        rows = scope_rows(scope, n_token, len(source))
        if rows:
            seen_a, seen_b, made = source[rows], from_b[rows], value[rows]
            cells[place] = judged(replace(
                difference(seen_a, seen_b, n_token - len(source) + rows[0]), floor=floors[place],
                local=relative_l2(seen_a, made)[0], inherited=relative_l2(made, seen_b)[0],
            ))
        return source

    watched: list[dict[Place, Cell]] = [{}, {}]
    keeps: Any = keep or (None, None)
    watch = [record(_teller(watched[i], "AB"[i], emit), n_token, keeps[i]) for i in (0, 1)]
    noise = jitter(min(COMPUTES[s.compute].unit for s in (a, b)), seed)  # the finer one: a coarser choice is to be seen
    lanes = [
        a.lane(tokens, chain(chain(a.bug(), watch[0]), record_values(now_a))),
        a.lane(tokens, chain(chain(a.bug(), noise), noisy)),
        b.lane(tokens, chain(chain(b.bug(), watch[1]), record_values(now_b))),
        Lane(forward(b.model, tokens, chain(b.bug(), local)), b.compute, b.threads, device=b.model.device),
    ]
    if witness:
        lanes += [a.lane(tokens, a.bug()), b.lane(tokens, b.bug())]
    with ExitStack() as files:
        for file in {id(s.model.file): s.model.file for s in (a, b)}.values():
            files.enter_context(verifying(file))
        logits = drive(lanes, cancelled)
    same = (same_bits(logits[0], logits[4]), same_bits(logits[2], logits[5])) if witness else (None, None)
    return Pair(watched[0], watched[1], cells, (logits[0], logits[2]), same)


def scope_rows(scope: str, n_token: int, n_row: int) -> list[int]:
    """Rows of a stage's value (its last n_row tokens) that the scope covers."""
    return [p - (n_token - n_row) for p in scope_positions(scope, n_token) if p >= n_token - n_row]


def judged(cell: Difference) -> Difference:
    """Fill in the state by the multiple of the floor."""
    assert cell.rel_l2 is not None
    floor = cell.floor or LEAST_FLOOR
    state = "same" if cell.rel_l2 <= SAME * floor else "unclear" if cell.rel_l2 <= CLEAR * floor else "differs"
    return replace(cell, state=state)


def _teller(into: dict[Place, Cell], side: str, emit: Emit) -> Any:  # noqa: ANN401 (what record takes)
    def seen(place: Place, stats: Cell) -> None:
        into[place] = stats
        emit(Event("cell", place=place, cell=stats, side=side))
    return seen
