"""What is called downstream goes when the named cause is removed from the run: patched, not argued."""

from __future__ import annotations

import pytest

from core.demo import files as demo
from core.formats.open_model import open_model
from core.trace.hints import find_hints
from core.trace.run import open_side
from core.trace.taps import patch
from tests.bench import hint_prompts as bench


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    return open_side(open_model(demo.write_demo(tmp_path_factory.mktemp("demo"))[0]), "cpu")


@pytest.fixture(scope="module")
def traced(side):
    return bench.run(side, [bench.encoded(side, "What is 2+2?")])[0]


def test_the_demonstration_has_the_right_first_finding_and_no_false_downstream(side, traced):
    removed, calmed = (traces[0] for traces in bench.again(side, [traced]))
    assert bench.row(traced, removed, calmed) == {"right": True, "born": True, "downstream": 2, "false": 0}
    assert [h.place for h in find_hints(calmed) if h.kind == "ratio"] == []


def test_a_spike_elsewhere_is_not_called_downstream_and_stays_when_the_first_is_removed(side, traced):
    def louder(x):
        return x * 60  # every token's: no doing of the spike at layer 3

    plant = {(9, "ffn_up"): louder}
    planted = bench.run(side, [traced.tokens], [patch(plant)])[0]
    hints = find_hints(planted)
    assert [h.place for h in hints if h.kind == "ratio"] == [(9, "ffn_up"), (3, "ffn_swigl")]
    assert (9, "ffn_up") not in [h.place for h in hints if h.kind == "downstream"]
    calmed = bench.run(side, [traced.tokens], [patch(plant | bench.without_spike(traced))])[0]
    assert bench.is_spike(calmed.cells, (9, "ffn_up"))
