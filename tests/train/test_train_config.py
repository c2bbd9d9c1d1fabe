"""Plans: what a preset, a mode and a TOML file settle to, and what is refused."""

from __future__ import annotations

import math

import pytest

from core.system.errors import FileError, UsageError
from core.system.json_text import to_plain
from core.train.config import PRESETS, TrainOptions, learning_rate, n_parameters, plan_of, resumed, settle
from tests.support.training import write_config


def test_the_370m_preset_has_the_published_sizes_and_counts_its_tied_head_once():
    arch = PRESETS["370m"].arch()
    assert (arch.n_layer, arch.d_model, arch.n_head, arch.n_kv_head, arch.head_dim, arch.d_ff, arch.n_vocab) == (
        24, 1024, 16, 4, 64, 2816, 50257)
    assert (arch.n_ctx, arch.rope.base, arch.eps, arch.tied) == (4096, 10000.0, 1e-5, True)
    head = arch.n_vocab * arch.d_model
    assert n_parameters(arch) == 322_045_952 and 366e6 < n_parameters(arch) + head < 374.5e6  # the published count


def test_the_rate_rises_linearly_to_its_peak_and_ends_at_its_hundredth(tmp_path):
    plan = settle(TrainOptions(tmp_path, steps=100, lr=1e-3, warm_up=10))
    assert [learning_rate(plan, s) for s in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])
    assert learning_rate(plan, 10) == pytest.approx(1e-3) and learning_rate(plan, 99) == pytest.approx(1e-5)
    assert learning_rate(plan, 55) == pytest.approx(1e-5 + 0.99e-3 * 0.5 * (1 + math.cos(math.pi * 45 / 89)))
    rates = [learning_rate(plan, s) for s in range(10, 100)]
    assert rates == sorted(rates, reverse=True)


def test_a_warm_up_longer_than_a_tenth_of_the_run_is_shortened_and_said(tmp_path):
    plan = settle(TrainOptions(tmp_path, steps=40))
    assert plan.warm_up == 4 and any("warm-up 4" in reason for reason in plan.reasons)


def test_from_scratch_is_judged_by_its_own_cap_and_finetune_by_the_other(tmp_path):
    assert settle(TrainOptions(tmp_path, config="370m")).cap == pytest.approx(21.65, abs=0.01)
    with pytest.raises(UsageError, match="needs a model to go on from: give --init"):
        settle(TrainOptions(tmp_path, mode="finetune"))
    with pytest.raises(UsageError, match="would not be read"):
        settle(TrainOptions(tmp_path, mode="from-scratch", init=tmp_path / "m.gguf"))


def test_a_toml_file_gives_the_sizes_and_a_base_gives_the_rest(tmp_path):
    (tmp_path / "a.toml").write_text('base = "tiny"\nn_layer = 3\n')
    plan = settle(TrainOptions(tmp_path, config=str(tmp_path / "a.toml")))
    assert plan.arch.n_layer == 3 and plan.arch.d_model == PRESETS["tiny"].d_model


@pytest.mark.parametrize("changes, says", [
    ({"n_head": 5}, "d_model 32 does not divide into 5 heads: head_dim would be 6.4"),
    ({"n_head": 32}, "head_dim 1 is odd"), ({"n_kv_head": 3}, "4 query heads cannot share 3 key-value heads"),
    ({"seq": 100}, "--seq 100 is longer than the model's context of 64"), ({"n_layer": 0}, "n_layer is 0"),
    ({"n_layer": 2.5}, "a whole number above 0"), ({"depth": 3}, "the key 'depth'"),
    ({"base": ["tiny"]}, "is not a preset"), ({"eps": math.nan}, "eps is nan"), ({"d_ff": 1 << 31}, "below 2"),
    ({"d_ff": None}, "lacks d_ff"),
])
def test_a_config_that_cannot_be_is_refused_with_the_key(tmp_path, changes, says):
    path = write_config(tmp_path / "bad.toml", **changes)
    with pytest.raises(UsageError, match=says):
        settle(TrainOptions(tmp_path, config=str(path)))


@pytest.mark.parametrize("text", ["n_layer = = 2", "n_layer = " + "9" * 5000, "a = " + "[" * 5000])
def test_a_config_that_is_no_toml_is_named(tmp_path, text):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(FileError, match=r"bad\.toml"):
        settle(TrainOptions(tmp_path, config=str(tmp_path / "bad.toml")))


def test_a_config_that_is_unknown_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"370m, tiny or a \.toml file"):
        settle(TrainOptions(tmp_path, config="7b"))


def test_a_plan_comes_back_from_json_and_only_its_steps_may_change(tmp_path):
    plan = settle(TrainOptions(tmp_path, seed=5))
    assert plan_of(to_plain(plan)) == plan
    longer = resumed(plan, TrainOptions(tmp_path, steps=500, seed=5))
    assert longer.steps == 500 and any("100 -> 500" in reason for reason in longer.reasons)
    with pytest.raises(UsageError, match=r"--seed 6 \(it began with 5\)"):
        resumed(plan, TrainOptions(tmp_path, seed=6))
