"""Experts in a check and in a pair: a near tie is judged as a set and said, and a pair says what other experts make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core import session
from core.formats.open_model import open_model
from core.model.experts import margins, route, swaps, with_ties_of
from core.model.layers import Experts
from core.model.lockstep import run_lockstep
from core.proof.check import check_stages
from core.proof.check_result import Check
from core.system.cancel import never
from core.trace.request import Prompt, Source
from core.trace.run import open_side
from core.trace.taps import record_values
from tests.support.families import write_family

IDS = (3, 17, 5, 42, 42, 7, 90, 1, 8, 11)
E4 = Experts(4, 2, "softmax", 8, "split", norm=True)
ROUTER = torch.tensor([[2.0, 1.0, 1.0 - 1e-9, 0.0], [3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)


def other(truth: torch.Tensor, token: int, taken: int, left: int) -> torch.Tensor:
    out = truth.clone()
    out[token, taken], out[token, left] = out[token, left], 0.0
    return out


def test_a_near_tie_is_weighed_as_the_source_chose() -> None:
    truth = route(E4, ROUTER, None)
    source = other(truth, 0, taken=2, left=1)
    found, ties = with_ties_of(E4, ROUTER, None, truth, source)
    assert [s.text(1e-5) for s in ties] == ["token 0: expert 2 for 1, margin below the floor"]
    assert torch.allclose(found, source, atol=1e-8)


def test_another_choice_with_a_margin_is_no_tie() -> None:
    truth = route(E4, ROUTER, None)
    source = other(truth, 1, taken=2, left=1)
    found, ties = with_ties_of(E4, ROUTER, None, truth, source)
    assert not ties and torch.equal(found, truth)
    assert "above the floor" in swaps(E4, ROUTER, None, truth, source)[0].text(1e-5)


def test_margins_are_of_the_last_chosen_over_the_best_left() -> None:
    assert margins(ROUTER, route(E4, ROUTER, None)).tolist() == pytest.approx([1e-9, 1.0])


@pytest.fixture
def tied(tmp_path):
    """A model whose experts 0 and 1 have the same row in the router of layer 1."""
    def change(name: str, array: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_gate_inp.weight":
            array = array.copy()
            array[1] = array[0]
        return array

    return write_family(tmp_path / "tied.gguf", "experts", change=change)


def captured(path, taken_for_tie: bool):
    """Every stage of the model; in layer 1 experts 0 and 1 change places, or the last two chosen and left."""
    side, values = open_side(open_model(path), "cpu"), {}
    run_lockstep([side.forward_run(IDS, record_values(values))])
    weights = values[1, "moe_weights"]
    alone = ((weights[:, :2] != 0).sum(1) == 1).nonzero().flatten()
    token = int(alone[0])
    one = weights.clone()
    a, b = (0, 1) if taken_for_tie else (int(weights[token].argmax()), int(values[1, "moe_router"][token].argmin()))
    one[token, [a, b]] = weights[token, [b, a]]

    def forced(layer, stage, value):
        return one if (layer, stage) == (1, "moe_weights") else value

    values = {}
    run_lockstep([side.forward_run(IDS, lambda i, s, v: record_values(values)(i, s, forced(i, s, v)))])
    return side, values, token


def test_a_check_passes_a_near_tie_and_says_it(tied) -> None:
    side, values, token = captured(tied, taken_for_tie=True)
    errors = check_stages(side, IDS, values=values, cancelled=never)
    assert not [p for p, e in errors.items() if e.is_bad]
    (said,) = errors[1, "moe_weights"].ties
    assert said.startswith(f"token {token}: expert ") and said.endswith("margin below the floor")
    trace = session.trace(Source(tied), Prompt(tokens=IDS))
    assert any("near tie" in line and said in line for line in Check(trace, errors).reasons)


def test_a_check_fails_at_another_expert_that_is_no_tie(tied) -> None:
    side, values, _ = captured(tied, taken_for_tie=False)
    errors = check_stages(side, IDS, values=values, cancelled=never)
    assert min(p for p, e in errors.items() if e.is_bad) == (1, "moe_weights")
    assert not errors[1, "moe_weights"].ties


def test_a_pair_says_what_is_other_experts_and_what_other_arithmetic(tmp_path) -> None:
    path = write_family(tmp_path / "a.gguf", "experts")
    bad = write_family(tmp_path / "b.gguf", "experts", change=lambda name, array: (
        np.roll(array, 1, 0) if name == "blk.0.ffn_gate_inp.weight" else array))
    result = session.compare(Source(path), Source(bad), Prompt(tokens=IDS))
    assert (result.verdict, result.first) == ("H2", (0, "moe_router"))
    routes, shares = result.reasons[-2:]
    assert routes.startswith("other experts for ") and "first at 0.moe_weights: token " in routes
    assert shares.endswith("is left with A's routes forced in B: 100% is other experts, 0% other arithmetic")
    before = replace(Source(path), plant="scale@1.attn_out")
    same = session.compare(Source(path), before, Prompt(tokens=IDS))
    assert same.reasons[-1].endswith("0% is other experts, 100% other arithmetic")
