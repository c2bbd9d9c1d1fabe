"""The hints of one trace: the first place, what belongs to it, which token carries it, and what is left unsaid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.trace.grid import marks, ratio
from core.trace.hints import find_hints
from core.trace.stats import Massive, ScopeStats, Stats
from tests.support.traces import cells_of, published_cells, spiking, token_stats, values

FLOAT32_ERROR = 1e-5  # numpy takes the std of float32 values in float32
RATIOS = ("ratio", "precursor", "downstream", "fall")


def told(hints, *kinds):
    return [(h.kind, h.layer, h.stage, h.scope) for h in hints if not kinds or h.kind in kinds]


# the published story

def test_the_published_trace_names_layer_3_ffn_swigl_first():
    hint = find_hints(published_cells())[0]
    assert (hint.kind, hint.strength, hint.layer, hint.stage, hint.scope) == ("ratio", "hint", 3, "ffn_swigl", "all")
    assert hint.measured == 1.2216 / 0.0709 and hint.baseline == 0.0709
    assert (hint.token, hint.channel) == (None, None)
    assert hint.sentence == ("ffn_swigl is 17.2 x layer 2; no per-token values: which token carries it is unknown")
    assert hint.rule == "std ratio to the layer before > 10, and 3 x its column's median"


def test_the_published_trace_has_one_precursor_two_downstream_and_nothing_else_by_ratio():
    hints = [h for h in find_hints(published_cells()) if h.kind in RATIOS]
    assert [(h.kind, h.layer, h.stage, round(h.measured, 1)) for h in hints] == [
        ("ratio", 3, "ffn_swigl", 17.2), ("precursor", 3, "ffn_silu", 3.2), ("downstream", 3, "ffn_out", 53.0),
        ("downstream", 3, "output", 16.4)]


def test_without_the_output_column_the_story_is_the_same():
    cells = {place: cell for place, cell in published_cells().items() if place[1] != "output"}
    assert told(find_hints(cells), *RATIOS) == [
        ("ratio", 3, "ffn_swigl", "all"), ("precursor", 3, "ffn_silu", "all"), ("downstream", 3, "ffn_out", "all")]


def test_the_threshold_moves_what_is_a_spike():
    assert told(find_hints(published_cells(), threshold=20), *RATIOS) == [
        ("ratio", 3, "ffn_out", "all"), ("precursor", 3, "ffn_silu", "all"), ("precursor", 3, "ffn_swigl", "all")]


def test_a_scope_that_the_source_lacks_has_no_hint():
    assert find_hints(published_cells(), scope="last") == ()


# what belongs to a spike

def test_a_later_spike_is_downstream_while_the_residual_is_raised():
    x = spiking()
    x[6, "qkv"][0] *= 200
    hints = find_hints(cells_of(x))
    assert told(hints, "ratio") == [("ratio", 3, "ffn_swigl", "all")]
    assert told(hints, "downstream", "after")[-1] == ("downstream", 6, "qkv", "all")
    assert hints[3].sentence.startswith(f"qkv is {hints[3].measured:.1f} x layer 5, downstream of 3.ffn_swigl; token 0")


def test_a_later_spike_of_other_tokens_is_its_own_and_comes_before_what_looks_like_the_model():
    x = spiking()
    x[6, "qkv"] *= 20  # every token: not the first one's residual
    assert told(find_hints(cells_of(x)), "ratio") == [("ratio", 6, "qkv", "all"), ("ratio", 3, "ffn_swigl", "all")]


def test_a_later_spike_is_its_own_once_the_residual_has_come_down():
    x = spiking()
    for layer in range(5, 10):
        x[layer, "output"][0] /= 60
    x[7, "qkv"][0] *= 200
    hints = find_hints(cells_of(x))
    assert told(hints, "ratio") == [("ratio", 7, "qkv", "all"), ("ratio", 3, "ffn_swigl", "all")]
    assert (7, "qkv") not in [h.place for h in hints if h.kind == "downstream"]


def test_a_rise_before_the_spike_in_its_layer_is_a_precursor_and_after_it_is_not():
    x = spiking()
    x[3, "attn_norm"] *= 5
    x[2, "qkv"] *= 5
    x[3, "output"] *= 1 / 8  # 3 to 10 after the spike
    found = told(find_hints(cells_of(x)), "precursor")
    assert found == [("precursor", 3, "attn_norm", "all")]


def test_detail_and_whole_model_stages_take_no_part_in_the_ratio():
    x = values()
    x[4, "attn_resid"] *= 50
    x[None, "final_norm"] *= 50
    assert told(find_hints(cells_of(x)), *RATIOS) == []


@pytest.mark.parametrize("before", [Stats(std=0.0), Stats(std=None), Stats(std=math.nan), None])
def test_over_zero_or_nothing_there_is_no_ratio(before):
    cells = {(1, "qkv"): ScopeStats({"all": Stats(std=5.0)})}
    if before:
        cells[0, "qkv"] = ScopeStats({"all": before})
    assert ratio(cells, (1, "qkv"), "all") is None
    assert find_hints(cells) == ()


def test_layer_0_has_no_ratio():
    assert ratio(published_cells(), (0, "ffn_out"), "all") is None


# falls

def test_a_stage_that_dies_is_a_fall():
    x = values()
    for layer in range(6, 10):
        x[layer, "attn_out"] *= 1e-3
    hint = find_hints(cells_of(x))[0]
    assert (hint.kind, hint.layer, hint.stage) == ("fall", 6, "attn_out")
    assert "attn_out is 0.001" in hint.sentence and "of layer 5" in hint.sentence
    assert hint.rule == "std ratio to the layer before < 0.1"


def test_what_an_overflow_leaves_finite_is_no_fall():
    x = values()
    x[6, "attn_norm"] *= 0
    x[6, "attn_norm"][0, 0] = math.nan
    hints = find_hints(cells_of(x))
    assert told(hints, "fall") == [] and hints[0].kind == "nan", hints


def test_coming_back_from_a_spike_is_no_fall():
    x = values()
    x[5, "attn_out"] *= 40
    assert told(find_hints(cells_of(x)), "fall") == []
    assert marks(cells_of(x), "all")[6, "attn_out"] == "."


def test_falling_under_the_level_before_a_spike_is_a_fall():
    x = values()
    x[5, "attn_out"] *= 40
    for layer in range(6, 10):
        x[layer, "attn_out"] *= 0.01
    assert told(find_hints(cells_of(x)), "fall") == [("fall", 6, "attn_out", "all")]


# single positions

def test_a_spike_that_fades_in_a_long_prompt_is_named_at_its_position():
    x = values(n_token=400, width=32)
    x[3, "ffn_up"][300] *= 15
    hints = [h for h in find_hints(cells_of(x, 400)) if h.kind != "z"]
    assert told(hints) == [("hidden", 3, "ffn_up", "pos:300")]
    want = np.std(x[3, "ffn_up"][300], ddof=1) / np.std(x[2, "ffn_up"][300], ddof=1)
    assert hints[0].token == 300 and math.isclose(hints[0].measured, want, rel_tol=FLOAT32_ERROR)
    assert hints[0].sentence.endswith("x at scope all: hidden at scope all")


def test_a_spike_that_shows_at_scope_all_is_not_told_again_for_its_position():
    hints = find_hints(cells_of(spiking()))
    assert {h.scope for h in hints} == {"all"}


def test_what_belongs_to_the_spike_at_its_own_position_is_not_hidden():
    x = spiking(times=120, n_token=40)
    x[3, "ffn_silu"][0] *= 12  # above the threshold at the position, under it at scope all
    x[5, "qkv"][0] *= 12       # the residual of that position carries the spike
    hints = find_hints(cells_of(x, 40))
    assert ratio(cells_of(x, 40), (3, "ffn_silu"), "all") < 10
    assert {h.scope for h in hints} == {"all"}
    assert told(hints, "ratio") == [("ratio", 3, "ffn_swigl", "all")]


def test_another_position_is_told_beside_the_spike_of_scope_all():
    x = spiking(times=120, n_token=40)
    x[6, "ffn_gate"][9] *= 14
    assert told(find_hints(cells_of(x, 40)), "ratio", "hidden") == [
        ("ratio", 3, "ffn_swigl", "all"), ("hidden", 6, "ffn_gate", "pos:9")]


def test_hidden_spikes_are_three_at_most_and_one_a_place():
    x = values(n_token=600)
    for i, layer in enumerate((2, 4, 6, 8)):
        x[layer, "ffn_up"][10 * i + 5] *= 14 + 7 * i
    x[8, "ffn_up"][400] *= 14
    hints = [h for h in find_hints(cells_of(x, 600)) if h.kind == "hidden"]
    assert [(h.layer, h.scope) for h in hints] == [(4, "pos:15"), (6, "pos:25"), (8, "pos:35")]
    assert hints[-1].sentence.endswith("; so at 1 more position")


@pytest.mark.parametrize("scope", ["last", "first", "rest", "pos:2"])
def test_at_another_scope_positions_are_not_searched(scope):
    x = values(n_token=200, width=32)
    x[3, "ffn_up"][99] *= 12
    cells = cells_of(x, 200)
    assert told(find_hints(cells), *RATIOS, "hidden") == [("hidden", 3, "ffn_up", "pos:99")]
    assert told(find_hints(cells, scope=scope), *RATIOS, "hidden") == []


def test_at_scope_rest_the_first_tokens_spike_is_gone():
    assert told(find_hints(cells_of(spiking()), scope="rest"), "ratio") == []
    hint = find_hints(cells_of(spiking(token=2)), scope="rest")[0]
    assert (hint.kind, hint.scope, hint.layer, hint.stage, hint.token) == ("ratio", "rest", 3, "ffn_swigl", 2)


# NaN, massive, z

def test_the_first_nan_is_named_once_and_before_any_spike():
    x = spiking()
    x[7, "ffn_norm"][6, 0] = math.nan
    for layer in range(8, 10):
        x[layer, "qkv"][6] = math.nan
    hints = find_hints(cells_of(x))
    assert told(hints, "nan") == [("nan", 7, "ffn_norm", "all")]
    assert (hints[0].kind, hints[0].token, hints[0].channel, hints[0].measured) == ("nan", 6, 0, 1.0)
    assert hints[0].sentence == ("ffn_norm has 1 NaN and 0 Inf of 448 values, the first at token 6, channel 0; "
                                 "2 cells after it have them too")


def test_an_inf_is_named_with_its_token_and_no_channel_is_made_up():
    x = values()
    x[None, "logits"][0, 5] = math.inf
    hint = find_hints(cells_of(x))[0]
    assert (hint.kind, hint.layer, hint.stage, hint.token, hint.channel) == ("nan", None, "logits", 6, None)


def test_a_nan_in_a_detail_stage_comes_before_what_follows_from_it():
    x = values()
    x[2, "attn_mix"][3, 1] = x[2, "attn_out"][3, 0] = math.nan
    assert told(find_hints(cells_of(x)), "nan") == [("nan", 2, "attn_mix", "all")]


def test_a_nan_of_a_source_without_tokens_says_that_its_token_is_unknown():
    hint = find_hints({(0, "qkv"): ScopeStats({"all": Stats(std=1.0, nan=2)})})[0]
    assert hint.kind == "nan" and hint.token is None and "which token has them is unknown" in hint.sentence


def massive_cells():
    x = values()
    cells = cells_of(x)
    for layer, stage in ((3, "ffn_out"), (3, "output"), (4, "output")):
        x[layer, stage][0, 21] = 2000.0
        cells[layer, stage] = token_stats(x[layer, stage], massive=Massive(0.5, ((0, 21, 2000.0),)))
    return cells


def test_a_massive_activation_is_named_where_it_first_appears():
    hints = [h for h in find_hints(massive_cells()) if h.kind == "massive"]
    assert [(h.layer, h.stage, h.token, h.channel, h.measured, h.baseline) for h in hints] == [
        (3, "ffn_out", 0, 21, 2000.0, 0.5)]
    assert hints[0].sentence == ("ffn_out reaches 2000.0, 4000 x the median |x|; token 0 carries it, in channel 21; "
                                 "no later layer takes it back")


def test_a_massive_activation_outside_the_scope_is_not_told():
    assert told(find_hints(massive_cells(), scope="rest"), "massive") == []


def test_outliers_of_a_column_come_last_and_are_three_at_most():
    x = values(n_layer=20)
    for layer in (4, 8, 12, 16):
        x[layer, "ffn_up"] *= 2.5  # under the watch ratio
    hints = find_hints(cells_of(x))
    assert [h.kind for h in hints] == ["z"] * 3
    assert all(h.stage == "ffn_up" and h.measured > 6 for h in hints)
    assert [h.layer for h in hints] == sorted(h.layer for h in hints)


def test_a_place_that_is_named_already_is_not_told_again_as_an_outlier():
    x = values(n_layer=20)
    x[5, "attn_out"] *= 30
    assert told(find_hints(cells_of(x))) == [("ratio", 5, "attn_out", "all")]


def test_a_nan_a_spike_a_massive_value_and_an_outlier_stand_in_that_order():
    x = spiking(n_layer=20)
    x[9, "ffn_norm"][6, 0] = math.nan
    x[12, "ffn_up"] *= 2.5
    cells = cells_of(x)
    cells[1, "ffn_out"] = token_stats(x[1, "ffn_out"], massive=Massive(0.1, ((0, 3, 200.0),)))
    kinds = [h.kind for h in find_hints(cells)]
    assert kinds == sorted(kinds, key=("nan", "ratio", "downstream", "massive", "z").index)  # of one spike
    assert set(kinds) == {"nan", "ratio", "downstream", "massive", "z"}


def test_quiet_values_have_no_hint():
    assert find_hints(cells_of(values())) == ()


def test_a_trace_without_cells_has_no_hint():
    assert find_hints({}) == ()
