"""Which token carries a spike, its ratio without that token, and what that speaks for."""

from __future__ import annotations

import numpy as np

from core.trace.hints import find_hints
from tests.support.traces import cells_of, spiking, values


def test_the_first_token_that_carries_a_spike_alone_looks_like_the_model():
    hint = find_hints(cells_of(spiking()))[0]
    assert (hint.layer, hint.stage, hint.token) == (3, "ffn_swigl", 0)
    share, without = hint.sentence.split("; ")[1:]
    assert share == "token 0 carries 99 % of it"
    assert without in ("1.0 x without it: looks like the model", "1.1 x without it: looks like the model")


def test_the_ratio_without_the_carrier_leaves_it_out_of_both_layers():
    x = spiking()
    hint = find_hints(cells_of(x))[0]
    want = np.std(x[3, "ffn_swigl"][1:], ddof=1) / np.std(x[2, "ffn_swigl"][1:], ddof=1)
    assert f"; {want:.1f} x without it" in hint.sentence


def test_another_token_that_carries_a_spike_alone_is_no_sign_of_the_model():
    hint = find_hints(cells_of(spiking(token=4)))[0]
    assert hint.token == 4 and hint.sentence.endswith("x without it: one token's doing, and not the first's")


def test_a_spike_of_every_token_is_not_one_tokens_doing():
    x = values()
    x[5, "attn_out"] *= 30
    hint = find_hints(cells_of(x))[0]
    assert (hint.layer, hint.stage, hint.token, hint.channel) == (5, "attn_out", None, None)
    assert hint.sentence.endswith("x without it: not one token's doing")


def test_a_single_token_is_said_to_be_the_only_one():
    x = values(n_token=1)
    x[5, "attn_out"] *= 30
    hint = find_hints(cells_of(x, 1))[0]
    assert "token 0 is the only one at scope all" in hint.sentence and "looks like" not in hint.sentence


def test_the_peaks_channel_is_named_where_the_carrier_has_it():
    x = spiking()
    x[3, "ffn_swigl"][0, 17] = 500
    hint = find_hints(cells_of(x))[0]
    assert (hint.token, hint.channel) == (0, 17)
