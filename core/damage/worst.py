"""Why a token went wrong: the earliest stage whose graft of A's value brings it back, the fewest tensors that do.

Shape letters: T tokens up to the worst one, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.damage.exact import first_layer, with_weights
from core.damage.few_tensors import Shifts, choices, shifts_of
from core.damage.graft_search import Grafts, Residuals, keep_residuals, resume_at, search
from core.damage.kl import last_kl
from core.damage.logits import hidden_states, logits
from core.model.layers import Layer
from core.model.lockstep import run_lockstep
from core.model.model import Resume, Tap
from core.model.stages import Place, place_text
from core.system.cancel import IsCancelled
from core.trace.run import Side
from core.trace.taps import chain, no_tap, patch

RECOVERED = 0.9   # of the token's KL
MOST_TENSORS = 5
DOUBT = 0.3  # of the KL, that moves of the logits may say too little (0.12 was seen)
HOPE = 0.05  # of the KL that the moves may lack where a search is worth its grafts
HEAD: Place = (None, "final_norm")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a token's KL is what it is. place: None where no graft brings it back; recovered: what that graft does.

    nearest: the few of A's tensors in B that bring most of it back, and nearest_recovered how much that is.
    """

    place: Place | None
    recovered: float | None
    nearest: tuple[str, ...] = ()
    nearest_recovered: float | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The fewest tensors that bring the token back; none where MOST_TENSORS do not."""
        return self.nearest if (self.nearest_recovered or 0.0) >= RECOVERED else ()


def cause_of(a: Side, b: Side, tokens: Sequence[int], cancelled: IsCancelled) -> Cause:
    """Why B's last token differs from A's: grafts by halving the layers, then by stage; then tensors."""
    before_a: Residuals = {}
    before_b: Residuals = {}
    hidden_a, hidden_b = hidden_states((a, b), tokens, [keep_residuals(before_a), keep_residuals(before_b)], cancelled)
    y_a, y_b = (logits(s, h[-1:], cancelled) for s, h in ((a, hidden_a), (b, hidden_b)))
    whole = last_kl(y_a, y_b)
    if not whole > 0:
        return Cause(None, None)

    def recovered(side: Side, tap: Tap, resume: Resume | None) -> float:
        hidden = hidden_states([side], tokens, [tap], cancelled, resume)[0]
        return 1 - last_kl(y_a, logits(side, hidden[-1:], cancelled)) / whole

    def graft(place: Place, value: Tensor) -> float:
        """B with A's value there."""
        if place == HEAD:
            return 1 - last_kl(y_a, logits(b, value[-1:], cancelled)) / whole
        layer = place[0] or 0
        after = resume_at(b, layer + 1, {layer + 1: value}) if place[1] == "output" else None
        if after is not None:
            return recovered(b, no_tap, after)
        return recovered(b, patch({place: lambda old: value.to(old)}), resume_at(b, layer, before_b))

    last = a.model.arch.n_layer - 1
    layer, back = _earliest_layer(last, lambda i: graft((i, "output"), before_a[i + 1]))
    if back < RECOVERED:
        back = graft(HEAD, hidden_a)
        place: Place | None = HEAD if back >= RECOVERED else None
    else:
        values = _stages(a, tokens, layer, resume_at(a, layer, before_a), cancelled)
        place, back = _earliest_stage(
            a.model.arch.layers[layer], back, lambda stage: graft((layer, stage), values[stage]))
    shifts = shifts_of(a, b, tokens, y_a[0], y_b[0], cancelled)
    few = _fewest_tensors(shifts, Grafts(a, b, tokens, y_a, whole, cancelled), lambda side, first: recovered(
        side, no_tap, resume_at(b, first, before_b)))
    return Cause(place, None if place is None else back, *few)


def _stages(
    side: Side, tokens: Sequence[int], layer: int, resume: Resume | None, cancelled: IsCancelled
) -> dict[str, Tensor]:
    """The values of one layer's stages."""
    kept: dict[str, Tensor] = {}

    def tap(at: int | None, stage: str, value: Tensor) -> Tensor:
        if at == layer:
            kept[stage] = value.clone()
        return value

    run = side.forward_run(tokens, chain(side.bug(), tap), resume=resume)
    run_lockstep([run], cancelled, enough=lambda: "output" in kept)
    return kept


def _earliest_layer(last: int, graft: Callable[[int], float]) -> tuple[int, float]:
    """The earliest layer whose output brings enough back, found by halving, and what it does; else the last."""
    low, high, back = 0, last, graft(last)
    while back >= RECOVERED and low < high:
        middle = (low + high) // 2
        again = graft(middle)
        if again >= RECOVERED:
            high, back = middle, again
        else:
            low = middle + 1
    return high, back


def _earliest_stage(layer: Layer, back: float, graft: Callable[[str], float]) -> tuple[Place, float]:
    """The earliest stage of the layer that brings enough back, as its output does; and what it does.

    Backwards: a stage is tried where one that reads it brings enough back, for what it feeds does no less than it.
    """
    enough = {"output": back}
    for stage in [*layer.nodes][::-1]:
        if any(stage in layer.nodes[reader].inputs for reader in enough):
            again = graft(stage)
            if again >= RECOVERED:
                enough[stage] = again
    earliest = next(stage for stage in layer.nodes if stage in enough)
    return (layer.index, earliest), enough[earliest]


def _fewest_tensors(
    shifts: Shifts, grafts: Grafts, recovers: Callable[[Side, int], float]
) -> tuple[tuple[str, ...], float | None]:
    """The smallest choice of A's tensors that brings enough back, and what it does; else the one that brings most.

    A choice is measured where it may bring enough back by its moves, and the last always. Where the last should bring
    it back, or nearly so, and does not, the moves mislead: grafts are searched.
    """
    a, b, foretold = grafts.a, grafts.b, 0.0
    best: tuple[tuple[str, ...], float | None] = ((), None)
    for names in choices(shifts, MOST_TENSORS):
        foretold = 1 - shifts.left(names) / shifts.left(())
        if len(names) < MOST_TENSORS and foretold < RECOVERED - DOUBT:
            continue
        first = min(first_layer(name, a.model.arch.n_layer) for name in names)
        back = recovers(with_weights(b, {name: a.model.file.weight(name) for name in names}), first)
        if best[1] is None or back > best[1]:
            best = names, back
        if back >= RECOVERED:
            return best
    if foretold < RECOVERED - HOPE:
        return best
    again = search(shifts, grafts, MOST_TENSORS, RECOVERED)
    return again if best[1] is None or again[1] > best[1] else best


def text_of(cause: Cause) -> str:
    """The cause in a line."""
    if cause.place is None:
        return "no graft brings it back"
    told = f"{', '.join(cause.nearest)} ({cause.nearest_recovered or 0.0:.0%})"
    tensors = "" if not cause.nearest else f"; so do {told}" if cause.tensors else (
        f"; no {MOST_TENSORS} tensors do, nearest {told}")
    return f"{place_text(cause.place)} brings back {cause.recovered:.0%}{tensors}"


def cause_to(cause: Cause) -> dict[str, Any]:
    """The cause as a JSON value that cause_from reads."""
    return {"place": cause.place, "recovered": cause.recovered, "nearest": cause.nearest,
            "nearest_recovered": cause.nearest_recovered}


def cause_from(told: dict[str, Any]) -> Cause:
    """The cause that cause_to wrote."""
    place = told["place"]
    return Cause(None if place is None else (place[0], place[1]), told["recovered"], tuple(told["nearest"]),
                 told["nearest_recovered"])
