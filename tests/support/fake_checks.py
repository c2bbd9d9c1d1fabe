"""A session that also checks and bisects: errors and rungs made by hand over the ready trace. No model, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

from core.model.stages import USUAL, Place
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison, LayerBisection, PatchResult
from core.system.errors import Cancelled
from core.system.progress import Phase
from core.trace.events import CellMeasured, StageJudged, Start
from core.trace.measures import LocalError
from core.trace.record import Trace
from tests.support.fake_session import FakeSession, pair, spiky_trace

N_LAYER = 10

BAD: dict[Place, LocalError] = {
    (5, "ffn_silu"): LocalError(0.0356, 2e-15, 0, 226, guess="it is GELU, not SiLU"),
    (7, "q_rope"): LocalError(2.25, 3e-15, 4, 11),
}


@cache
def shallow() -> Trace:
    """The ready trace with 10 layers: a screen of it is drawn in half the time."""
    return spiky_trace(N_LAYER)


@cache
def shallow_pair() -> Comparison:
    """The pair of fake_session with 10 layers; float64 has found side B wrong."""
    found = pair()
    a, b = (replace(t, facts=shallow().facts, cells=_cut(t.cells)) for t in (found.a, found.b))
    error = LocalError(0.04, 2e-15, 2, 9, guess="its bias is missing")
    return replace(found, a=a, b=b, cells=_cut(found.cells), error=error)


def _cut(cells):
    return {place: cell for place, cell in cells.items() if (place[0] or 0) < N_LAYER}


def check_of(trace: Trace, bad: dict[Place, LocalError] = BAD) -> Check:
    """A check of the trace in which these places are bad and each other is within its floor."""
    return Check(trace, {p: bad.get(p, LocalError(4e-15, 4e-15, 1, 3)) for p in trace.cells})


def bisection(entry: int | None = 5) -> Bisection:
    """The pair with its ladder: B's output of layer 5 brings the logits back."""
    judged = shallow_pair()
    if entry is None:
        places: tuple[Place, ...] = ((9, "output"), (None, "embedding"), (None, "final_norm"))
        rungs = [PatchResult(p, *((0.0, 1.0) if p[1] == "final_norm" else (0.5, 0.0))) for p in places]
        return Bisection(judged, LayerBisection(0.5, tuple(rungs), None))
    layers = [PatchResult((i, "output"), *((0.0, 1.0) if i >= entry else (0.5, 0.0))) for i in (9, 4, 7, 5)]
    inside = [PatchResult((entry, s.name), *((0.0, 1.0) if s.name == "ffn_out" else (0.61, -0.22)))
              for s in USUAL if not s.whole and s.name != "output"]
    return Bisection(judged, LayerBisection(0.5, (*layers, *inside), entry), lambda folder: folder)


@dataclass
class FakeCheckSession(FakeSession):
    """A FakeSession whose check and bisection are ready. hold: a phase at which the bisection waits for go."""

    traced: Trace = field(default_factory=shallow)
    checked: Check | None = None
    bisected: Bisection = field(default_factory=bisection)
    hold: str = ""

    def __post_init__(self):
        """Compare as it bisects, and check what it traces."""
        self.comparison = self.comparison or self.bisected.comparison
        self.checked = self.checked or check_of(self.traced)

    def check(self, source, prompt, options, *, emit, cancelled):
        """Emit each cell and its error."""
        self.calls.append(("check", source, prompt, options.generate))
        emit(Start(self.traced.facts.n_layer, self.traced.tokens))
        emit(Phase("checking against float64"))
        for place, error in self.checked.errors.items():
            emit(CellMeasured(place, self.checked.trace.cells[place]))
            self._wait(place == self.stop_at, cancelled)
            emit(StageJudged(place, error))
        return self.checked

    def bisect(self, a, b, prompt, options, *, emit, cancelled):
        """Emit the phases."""
        self.calls.append(("bisect", a, b))
        for phase in ("comparing", "halving layers 0 to 9", "halving layers 5 to 7", "grafting the stages of layer 5"):
            emit(Phase(phase))
            self._wait(phase == self.hold, cancelled)
        return self.bisected

    def _wait(self, here, cancelled):
        while here and not self.go.wait(0.005):
            if cancelled():
                raise Cancelled("cancelled")
