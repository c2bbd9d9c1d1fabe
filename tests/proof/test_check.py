"""A check against float64 passes what is clean and names the planted place, whatever the compute."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core.faults.value_faults import VALUE_FAULTS
from core.formats.open_model import open_model
from core.kernels.cpu.build import Absent
from core.model import matmul
from core.model.stages import USUAL, Place, place_order, place_text
from core.proof.check import check_run, check_stages
from core.proof.check_result import Check
from core.proof.distance import difference, nmse, relative_l2
from core.quant.activations import COMPUTES
from core.system.cancel import never
from core.system.errors import UsageError
from core.trace.measures import BAD_FACTOR, LocalError
from core.trace.record import CaptureContract, Trace
from core.trace.run import open_side
from core.trace.taps import no_tap
from tests.support.small_models import IDS, write_model

N_LAYER = 3
OTHERS = ("silu", "no-window", "no-sinks")  # kinds that these models have no place for
PLANTED = [kind for kind, row in VALUE_FAULTS.items() if not row.choice and kind not in OTHERS]
NAMES = {s.name for s in USUAL}
LINEAR = tuple(s for s in VALUE_FAULTS["bf16-sum"].stages if s in NAMES)  # what a coarse compute makes coarse
# plants that may change nothing, or less than the compute itself costs: kind -> (stages, computes, models), and why
HIDDEN = {
    "stale": (("logits",), COMPUTES, ("K", "8")),                    # it has one token only
    "no-bias": (LINEAR, COMPUTES, ("K", "8")),                       # only K has biases, of qkv
    "nibbles": (VALUE_FAULTS["nibbles"].stages, COMPUTES, ("8",)),         # Q8_0 has no nibbles
    "scale-min": (VALUE_FAULTS["scale-min"].stages, COMPUTES, ("8",)),     # nor a min
    "zero-channel": ((*LINEAR, "logits"), ("q8", "bf16"), ("K", "8")),  # one channel is a 256th or a 64th of the value
    "eps": (VALUE_FAULTS["eps"].stages, ("f16",), ("K", "8")),
                # 1e-3 beside a mean square of 1 is one rounding
    "bf16-sum": (LINEAR, ("q8", "bf16", "f16"), ("K", "8")),         # as coarse as the compute
}
FACTS = CaptureContract(None, None, None, None, None, None)
PLACES: list[Place] = sorted(
    ((layer, s.name) for s in USUAL for layer in ((None,) if s.whole else range(N_LAYER))), key=place_order)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    return {
        "K": open_model(write_model(folder / "q.gguf", "Q4_K", d_model=256, d_ff=256)),
        "8": open_model(write_model(folder / "f.gguf", "Q8_0", arch="qwen3", head_dim=32)),
    }


def checked(file, compute: str, plant: str | None, ids=IDS, **more) -> Check:
    errors = check_stages(open_side(file, "cpu", compute, plant=plant), list(ids), cancelled=never, **more)
    return Check(Trace("m", FACTS, (), {}), errors)


def unheard(place: Place, error: LocalError) -> None:
    """Take an error and drop it."""


def planted_at(kind: str, place: Place) -> str:
    return f"{kind}@{place_text(place)}"


@pytest.mark.parametrize("compute", list(COMPUTES))
@pytest.mark.parametrize("model", ["K", "8"])
@pytest.mark.parametrize("ids", [IDS, (5,), tuple(range(60))])
def test_a_clean_model_passes_at_every_stage(model, compute, ids, models):
    result = checked(models[model], compute, None, ids)
    assert result.verdict == "PASS" and set(result.errors) == set(PLACES), result.reasons


def place_of(stage: str, turn: int) -> Place:
    """A stage's place, another layer for each turn, so that the table walks through all layers."""
    return (None if any(s.whole for s in USUAL if s.name == stage) else turn % N_LAYER, stage)


def hold(models, model: str, kind: str, compute: str, place: Place) -> None:
    """The planted place is named; where nothing is, the plant is one that may hide there, and it is proved small."""
    last = place[0] if place[0] is not None else 0 if place[1] == "embedding" else None
    stages, computes, where = HIDDEN.get(kind, ((), (), ()))
    may_hide = place[1] in stages and compute in computes and model in where
    try:
        result = checked(models[model], compute, planted_at(kind, place), last_layer=last)
    except UsageError as error:
        assert may_hide and "changes nothing here" in str(error), error
        return
    if result.first is None and may_hide:
        assert result.errors[place].nmse <= BAD_FACTOR * result.errors[place].limit
        return
    assert result.first == place, (f"{planted_at(kind, place)} in {compute}: named {result.first}", result.reasons)


@pytest.mark.parametrize(("kind", "compute"), [
    pytest.param(kind, compute, marks=() if i in (0, 1 + turn % (len(COMPUTES) - 1)) else pytest.mark.slow)
    for turn, kind in enumerate(PLANTED) for i, compute in enumerate(COMPUTES)])  # by default in float32 and one more
def test_every_plant_is_named_at_its_stage(kind, compute, models):
    turn = PLANTED.index(kind)
    stages = VALUE_FAULTS[kind].stages[turn % 2 :: 2] or VALUE_FAULTS[kind].stages
    for i, stage in enumerate(s for s in stages if s in NAMES):
        hold(models, "8" if compute == "bf16" else "K", kind, compute, place_of(stage, turn + i))


@pytest.mark.slow
@pytest.mark.parametrize("compute", list(COMPUTES))
@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("model", ["K", "8"])
def test_every_plant_is_named_at_every_place(model, kind, compute, models):
    for place in PLACES:
        if place[1] in VALUE_FAULTS[kind].stages:
            hold(models, model, kind, compute, place)


def test_a_nan_is_named_with_its_token_and_channel(models):
    error = checked(models["K"], "f32", "nan@1.ffn_up").errors[1, "ffn_up"]
    assert (error.token, error.channel, error.nmse) == (len(IDS) - 1, 0, math.inf)


def test_the_first_bad_stage_is_named_even_where_later_ones_are_bad_too(models):
    result = checked(models["8"], "f32", "nan@0.attn_mix")
    assert result.first == (0, "attn_mix") and result.verdict == "FAIL"


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_a_wrong_kernel_is_found_though_every_run_uses_it(compute, models, monkeypatch):
    plain = matmul.multiply_fused

    def wrong(kernels, weight, x, cancelled, kind):
        out = plain(kernels, weight, x, cancelled, kind)
        if weight.name == "blk.1.ffn_up.weight":
            out[:, 5] *= 4
        return out

    if isinstance(matmul.library(), Absent):
        pytest.skip("no compiled kernels here")
    monkeypatch.setattr(matmul, "multiply_fused", wrong)
    result = checked(models["K"], compute, None)
    assert result.first == (1, "ffn_up"), result.reasons
    assert result.errors[1, "ffn_up"].channel == 5


def test_a_check_up_to_a_layer_stops_after_it(models):
    result = checked(models["8"], "f32", None, last_layer=1)
    assert {p for p in PLACES if p[0] in (0, 1)} <= set(result.errors) and (2, "qkv") not in result.errors


def test_a_check_runs_its_witness_beside_it(models):
    side = open_side(models["8"], "cpu", plant="scale@1.ffn_out")
    assert check_run(side, IDS, watch=no_tap, on_error=unheard, cancelled=never).same_logits


def test_a_tap_that_disturbs_the_run_is_seen_by_its_witness(models):
    def disturbing(layer, stage, value):
        return value * 1.0001 if (layer, stage) == (1, "output") else value

    side = open_side(models["8"], "cpu")
    assert not check_run(side, IDS, watch=disturbing, on_error=unheard, cancelled=never).same_logits


def test_the_floor_of_a_stage_is_what_its_compute_costs(models):
    floors = {c: checked(models["K"], c, None).errors[1, "ffn_out"].floor for c in COMPUTES}
    assert floors["f32"] < 1e-12 and 1e-6 < floors["q8"] < 1e-3 and 1e-7 < floors["bf16"] < 1e-3, floors


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_relative_l2_is_that_of_the_worst_token():
    a, b = rows([3, 4], [1, 0], [0, 0]), rows([3, 4.5], [1, 0.5], [0, 0])
    far, row = relative_l2(a, b)
    assert (far, row) == (0.5, 1)
    assert relative_l2(a, a) == (0.0, 0)
    assert relative_l2(rows([0, 0]), rows([0, 1e-30]))[0] == math.inf, "nothing against something"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_on_one_side_only_is_infinitely_far(bad):
    a, b = rows([1, 2], [3, 4]), rows([1, 2], [3, bad])
    for x, y in ((a, b), (b, a)):
        assert relative_l2(x, y) == (math.inf, 1)
        far = difference(x, y, first=5)
        assert (far.rel_l2, far.max_abs, far.token, far.channel) == (math.inf, math.inf, 6, 1)


def test_the_same_nan_on_both_sides_is_no_difference_but_what_stands_beside_it_is():
    a, b = rows([math.nan, 2, 2]), rows([math.nan, 2, 2])
    assert relative_l2(a, b)[0] == 0 and difference(a, b, 0).max_abs == 0
    assert relative_l2(a, rows([math.nan, 2, 3]))[0] == pytest.approx(1 / math.sqrt(8))


def test_infinities_of_other_sign_differ():
    assert relative_l2(rows([math.inf, 1]), rows([-math.inf, 1]))[0] == math.inf


def test_a_difference_has_cosine_and_the_place_of_the_largest_gap():
    a, b = rows([1, 0, 0, 0], [1, 2, 3, 4]), rows([1, 0, 0, 0], [1, 2, 5, 2])
    far = difference(a, b, first=2)
    x, y = np.array([1, 2, 3, 4.0]), np.array([1, 2, 5, 2.0])
    assert far.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert (far.max_abs, far.token, far.channel) == (2.0, 3, 2), "the lowest channel on a tie"
    assert difference(rows([0, 0]), rows([1, 0]), 0).cosine is None


def test_nmse_judges_only_tokens_whose_truth_is_finite():
    truth, value = rows([1, 0], [math.nan, 1], [2, 0]), rows([1.1, 0], [7, 7], [2, 1])
    assert nmse(truth, value)[:2] == (pytest.approx(0.25), 2)
    assert nmse(rows([math.nan, 1]), rows([5, 5])) is None
    assert nmse(rows([1, 1]), rows([math.nan, 1]))[0] == math.inf


def test_a_local_error_is_bad_ten_times_in_size_above_its_floor():
    assert not LocalError(0.99e-4, 1e-6, 0, 0).is_bad and LocalError(1.1e-4, 1e-6, 0, 0).is_bad
    assert not LocalError(1e-12, 0.0, 0, 0).is_bad, "below what float32 sums lose anyway"
    assert LocalError(1e-2, 1e-6, 0, 0).sqnr_db == pytest.approx(20)
