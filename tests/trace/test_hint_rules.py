"""Each rule of the hints with what it must say of a healthy model, and of a planted wrong one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from core.trace.grid import marks, ratio
from core.trace.hints import find_hints
from core.trace.stats import Massive, ScopeStats, Stats
from core.trace.token_share import first_tokens
from tests.support.traces import cells_of, published_cells, spiking, token_stats, trace_of, values


def told(hints, *kinds):
    return [(h.kind, h.layer, h.stage) for h in hints if not kinds or h.kind in kinds]


def stds(stage, *levels):
    """Statistics of one column, a layer each."""
    return {(layer, stage): ScopeStats({"all": Stats(std=std)}) for layer, std in enumerate(levels)}


# a spike, and a step

def test_a_low_first_layer_is_a_step_and_no_spike():
    x = values()
    x[0, "attn_out"] /= 12  # as in trained models
    hint = find_hints(cells_of(x))[0]
    assert (hint.kind, hint.layer, hint.stage) == ("step", 1, "attn_out")
    assert ", yet 0.9 x its column's median: layer 0 is the low one; " in hint.sentence
    assert marks(cells_of(x), "all")[1, "attn_out"] == "!"


def test_a_step_comes_after_every_spike():
    x = spiking()
    x[0, "attn_out"] /= 12
    hints = find_hints(cells_of(x))
    assert told(hints)[0] == ("ratio", 3, "ffn_swigl")
    assert [h.kind for h in hints].index("step") == max(i for i, h in enumerate(hints) if h.kind == "downstream") + 1


@pytest.mark.parametrize(("level", "kind"), [(2.9, "step"), (3.1, "ratio")])
def test_a_spike_is_three_times_the_median_of_its_columns_other_layers(level, kind):
    cells = stds("ffn_up", 1, 1, 0.1, level, 1, 1, 1)
    assert told(find_hints(cells), "step", "ratio") == [(kind, 3, "ffn_up")]
    assert marks(cells, "all")[3, "ffn_up"] == {"step": "!", "ratio": "X"}[kind]


@pytest.mark.parametrize(("levels", "kind", "why"), [
    ((1, 0.1, 2.9, 3, 3), "step", "2.9 x the highest layer before it: layer 1 is the low one"),
    ((1, 0.1, 3.1, 3, 3), "ratio", None),                 # the median of what follows does not matter
    ((1, 1, 11, 40, 40, 40), "step", "0.28 x its column's median: layer 1 is the low one"),
    ((1, 1, 11, 30, 30, 30), "ratio", None),
])
def test_the_residual_is_held_to_the_layers_before_it_for_it_stays_raised(levels, kind, why):
    hint = next(h for h in find_hints(stds("output", *levels)) if h.kind in ("ratio", "step"))
    assert (hint.kind, hint.layer) == (kind, 2)
    assert why is None or why in hint.sentence


def test_layers_of_another_kind_are_not_held_against_each_other():
    x = values()
    kinds = tuple("full" if layer % 3 == 2 else "window" for layer in range(10))
    for layer in range(2, 10, 3):
        x[layer, "attn_out"] *= 40  # full attention is louder, at every such layer
    alike, known = (find_hints(trace_of(cells_of(x), layer_kinds=k)) for k in ((), kinds))
    assert ("ratio", 2, "attn_out") in told(alike) and told(known) == []
    assert ratio(cells_of(x), (5, "attn_out"), "all", kinds) < 2 < 20 < ratio(cells_of(x), (5, "attn_out"), "all")
    assert ratio(cells_of(x), (2, "attn_out"), "all", kinds) is None


def test_a_spike_among_the_layers_of_its_kind_names_the_layer_it_is_over():
    x = values()
    kinds = tuple("full" if layer % 3 == 2 else "window" for layer in range(10))
    x[6, "attn_out"] *= 30
    x[2, "attn_out"] *= 50
    hints = find_hints(trace_of(cells_of(x), layer_kinds=kinds))
    assert told(hints, "ratio") == [("ratio", 6, "attn_out")] and " x layer 4; " in hints[0].sentence
    assert marks(cells_of(x), "all", kinds=kinds)[6, "attn_out"] == "X"


# downstream, and after

def test_the_false_downstream_of_a_healthy_model_is_not_told():
    x = spiking(layer=6)
    x[1, "attn_out"] *= 40  # every token's, and the residual stays as it was
    hints = find_hints(cells_of(x))
    assert told(hints, "ratio") == [("ratio", 1, "attn_out"), ("ratio", 6, "ffn_swigl")]
    assert all("6.ffn_swigl" in h.sentence for h in hints if h.kind == "downstream")


def test_a_later_spike_of_the_same_token_whose_residual_has_come_down_comes_after():
    x = spiking()
    for layer in range(5, 10):
        x[layer, "output"][0, 17] = 1.0
    x[7, "ffn_gate"][0, 5] = 400.0
    hints = find_hints(cells_of(x))
    assert told(hints, "ratio", "after") == [("ratio", 3, "ffn_swigl"), ("after", 7, "ffn_gate")]
    assert "x layer 6, after 3.ffn_swigl; token 0" in next(h for h in hints if h.kind == "after").sentence


def test_a_spike_that_does_not_look_like_the_model_is_not_hidden_behind_one_that_does():
    x = spiking()
    x[7, "attn_out"][0] *= 200  # the same token, but no feed-forward stage
    for layer in range(5, 10):
        x[layer, "output"][0, 17] = 1.0
    assert told(find_hints(cells_of(x)), "ratio")[0] == ("ratio", 7, "attn_out")


@pytest.mark.parametrize(("raised", "kind"), [(True, "downstream"), (False, "ratio")])
def test_the_feed_forward_block_follows_from_attention_only_where_the_residual_is_raised(raised, kind):
    x = spiking(layer=6)
    x[6, "attn_out"][0] *= 200
    if raised:
        x[6, "attn_resid"][0] *= 200
    hints = find_hints(cells_of(x))
    assert told(hints)[0] == ("ratio", 6, "attn_out")
    assert next(h.kind for h in hints if h.place == (6, "ffn_swigl")) == kind


def test_a_sibling_in_the_block_does_not_follow_from_the_other():
    x = values()
    x[4, "ffn_gate"] *= 30
    x[4, "ffn_up"] *= 30
    x[4, "ffn_swigl"] *= 30
    assert told(find_hints(cells_of(x)), "ratio", "downstream", "after") == [
        ("ratio", 4, "ffn_gate"), ("after", 4, "ffn_up"), ("downstream", 4, "ffn_swigl")]


def test_without_per_token_values_the_scopes_residual_decides():
    cells = published_cells()
    cells[9, "ffn_swigl"] = ScopeStats({"all": Stats(std=9.0)})
    assert ("downstream", 9, "ffn_swigl") in told(find_hints(cells))
    known = {p: c for p, c in cells.items() if p[1] != "output"}
    assert ("after", 9, "ffn_swigl") in told(find_hints(known))


# looks like the model

def test_what_looks_like_the_model_comes_after_what_does_not():
    x = spiking()
    x[8, "ffn_up"] *= 30
    assert told(find_hints(cells_of(x)), "ratio") == [("ratio", 8, "ffn_up"), ("ratio", 3, "ffn_swigl")]


@pytest.mark.parametrize(("change", "says"), [
    ({}, ": looks like the model"),
    ({"channel": None}, ": the first token's doing, yet not in few channels of a feed-forward stage"),
    ({"token": 4}, ": one token's doing, and not the first's"),
])
def test_only_the_first_tokens_few_channels_look_like_the_model(change, says):
    hint = find_hints(cells_of(spiking(**change)))[0]
    assert (hint.layer, hint.stage) == (3, "ffn_swigl") and hint.sentence.endswith(says)


def test_a_spike_that_stays_without_the_first_token_does_not_look_like_the_model():
    x = spiking()
    x[3, "ffn_swigl"][1:] *= 4  # the others rise with it
    hint = find_hints(cells_of(x))[0]
    assert hint.place == (3, "ffn_swigl") and hint.token == 0
    assert hint.sentence.endswith(" x without it: not one token's doing")


def test_at_an_attention_stage_nothing_looks_like_the_model():
    x = values()
    x[3, "attn_out"][0, 5] = 400
    assert find_hints(cells_of(x))[0].sentence.endswith(
        ": the first token's doing, yet not in few channels of a feed-forward stage")


def test_a_repeated_first_token_carries_as_one():
    x = spiking()
    for place in x:
        if len(x[place]) > 3:
            x[place][1:3] = x[place][0]
    trace = trace_of(cells_of(x))
    same = replace(trace, tokens=tuple(replace(t, id=5) if i < 3 else t for i, t in enumerate(trace.tokens)))
    hint = find_hints(same)[0]
    assert "tokens 0 to 2 carry 99 % of it; " in hint.sentence and hint.sentence.endswith(": looks like the model")
    assert find_hints(trace)[0].sentence.endswith(": not one token's doing")


@pytest.mark.parametrize(("ids", "n"), [
    ((), 1), ((4,), 1), ((4, 5, 6), 1), ((4, 4, 4, 5), 3), ((1, 9, 9, 9, 5), 4), ((1, 9, 9, 5), 1),
])
def test_first_tokens_are_the_leading_run_or_the_first_and_a_long_run(ids, n):
    assert first_tokens(ids) == n


def test_of_two_that_look_like_the_model_the_one_that_raises_the_residual_comes_first():
    x = spiking(layer=6)
    x[2, "ffn_swigl"][0, 9] = 400  # passes through: the output stays
    assert told(find_hints(cells_of(x)), "ratio") == [("ratio", 6, "ffn_swigl"), ("ratio", 2, "ffn_swigl")]


# massive channels

def massive_model():
    """A first token whose residual holds one channel from layer 3 to layer 7, where a block takes it back."""
    x = spiking(times=600)
    x[3, "ffn_out"][0, 17] = 4000
    x[7, "ffn_swigl"][0, 9] = 900
    x[7, "ffn_out"][0, 17] = -3900
    for layer in range(3, 10):
        x[layer, "output"][0, 17] = 4000 if layer < 7 else 100
    cells = cells_of(x)
    for place in ((3, "ffn_swigl"), (3, "ffn_out"), *((layer, "output") for layer in range(3, 7)), (7, "ffn_out")):
        value = float(x[place][0, 17])
        cells[place] = token_stats(x[place], massive=Massive(0.7, ((0, 17, value),)), top=((17, 0, value),))
    return cells


def test_a_massive_channel_is_told_once_with_its_birth_and_its_end():
    hints = [h for h in find_hints(massive_model()) if h.kind == "massive"]
    assert [(h.layer, h.stage, h.token, h.channel) for h in hints] == [(3, "ffn_out", 0, 17)]
    assert hints[0].sentence.endswith("token 0 carries it, in channel 17; born in ffn_swigl, channel 17; "
                                      "it ends at 7.ffn_out, which takes 3900.0 of it back")


def test_a_massive_channel_that_no_layer_takes_back_is_said_to_stay():
    cells = massive_model()
    cells[7, "ffn_out"] = cells[6, "ffn_out"]
    hint = next(h for h in find_hints(cells) if h.kind == "massive")
    assert hint.sentence.endswith("; no later layer takes it back")


def test_a_massive_channel_ends_where_more_than_half_of_it_has_been_taken_back():
    cells = massive_model()
    for layer in (5, 6):
        value = -900.0 if layer == 5 else -1300.0
        x = values()[layer, "ffn_out"]
        x[0, 17] = value
        cells[layer, "ffn_out"] = token_stats(x, massive=Massive(0.7, ((0, 17, value),)), top=((17, 0, value),))
    hint = next(h for h in find_hints(cells) if h.kind == "massive")
    assert hint.sentence.endswith("; it ends at 6.ffn_out, which takes 1300.0 of it back")


def test_what_the_spike_writes_is_told_where_too_many_channels_are_far_out_to_be_massive():
    x = spiking(times=600)
    cells = cells_of(x)
    for layer in range(3, 10):
        for stage in ("ffn_out", "output"):
            y = x[layer, stage]
            cells[layer, stage] = token_stats(y, top=((17, 0, float(y[0, 17])),))
    hint = next(h for h in find_hints(cells) if h.kind == "massive")
    assert (hint.layer, hint.stage, hint.token, hint.channel, hint.baseline) == (3, "ffn_out", 0, 17, None)


# hidden

def test_a_position_that_is_low_the_layer_before_is_not_hidden_among_its_equals():
    x = values(n_token=200)
    x[2, "ffn_up"][50] /= 100
    x[3, "ffn_up"][50] *= 3.5  # far above its own layer before and its own column, and three tokens in four are as loud
    x[3, "ffn_up"][51:] *= 3.5
    assert told(find_hints(cells_of(x, 200)), "hidden") == []
    x[3, "ffn_up"][51:] /= 3.5
    assert told(find_hints(cells_of(x, 200)), "hidden") == [("hidden", 3, "ffn_up")]


# overflow, order

@pytest.mark.parametrize(("peak", "told_"), [(65504.0, False), (65520.0, True)])
def test_a_value_that_float16_cannot_hold_is_an_overflow(peak, told_):
    x = values()
    x[2, "ffn_out"][3, 11] = peak
    assert (("overflow", 2, "ffn_out") in told(find_hints(cells_of(x)))) is told_


def test_an_overflow_is_told_once_with_its_place():
    x = values()
    for place in ((2, "ffn_out"), (2, "output"), (3, "output")):
        x[place][3, 11] = -129212
    hints = [h for h in find_hints(cells_of(x)) if h.kind == "overflow"]
    assert [(h.layer, h.stage, h.token, h.channel, h.measured) for h in hints] == [(2, "ffn_out", 3, 11, 129212.0)]
    assert hints[0].sentence == ("2.ffn_out reaches 129212: Inf in float16; token 3 carries it, in channel 11; "
                                 "2 cells after it do too")


def test_an_outlier_of_the_residual_is_never_told_for_it_grows():
    x = values(n_layer=20)
    for layer in range(20):
        x[layer, "output"] *= 1 + 2.5 * (layer == 0) + 0.001 * layer
    x[12, "ffn_up"] *= 2.5
    assert told(find_hints(cells_of(x))) == [("z", 12, "ffn_up")]


def test_the_kinds_come_in_their_order():
    x = spiking(n_layer=20, n_token=40, times=4000)
    x[9, "ffn_norm"][6, 0] = math.nan
    x[12, "qkv"] *= 30
    x[14, "ffn_gate"][20] *= 14
    x[0, "attn_out"] /= 12
    for layer in range(16, 20):
        x[layer, "attn_norm"] *= 1e-3
    x[5, "ffn_up"] *= 2.5
    x[18, "ffn_out"][2, 3] = 7e4
    cells = cells_of(x, 40)
    cells[3, "ffn_out"] = token_stats(x[3, "ffn_out"], massive=Massive(0.7, ((0, 17, 32000.0),)))
    kinds = list(dict.fromkeys(h.kind for h in find_hints(cells)))
    assert kinds == ["nan", "ratio", "downstream", "massive", "hidden", "overflow", "step", "fall", "z"]


def test_a_spike_in_a_growing_column_is_judged_by_the_layers_there_are():
    rng = np.random.default_rng(0)
    x = {(layer, "attn_out"): rng.standard_normal((7, 64)) * (0.08 if layer == 0 else 1) for layer in range(6)}
    first = {place: a for place, a in x.items() if place[0] < 2}
    assert marks(cells_of(first), "all")[1, "attn_out"] == "X"
    assert marks(cells_of(x), "all")[1, "attn_out"] == "!"
