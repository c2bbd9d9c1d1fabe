"""The statistics: exact merging, scopes as views, and what is said where nothing is finite."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from core.model.stages import SCOPES
from core.trace.stats import ScopeStats, Stats, merge_moments
from tests.support.traces import token_stats

MERGE_ERROR = 1e-13  # relative: a few hundred float64 roundings
SHIFT_ERROR = 1e-9   # relative, of a spread of 1 around 1e6: the mean's own rounding is 1e-10


def direct(x: np.ndarray) -> dict[str, float]:
    """The same definitions over the finite values at once, in exact arithmetic where it matters."""
    flat = [Fraction(float(v)) for v in x.ravel() if math.isfinite(v)]
    mean = sum(flat) / len(flat)
    m2 = sum((v - mean) ** 2 for v in flat)
    return {
        "mean": float(mean), "std": math.sqrt(m2 / (len(flat) - 1)), "min": float(min(flat)), "max": float(max(flat)),
        "absmax": float(max(map(abs, flat))), "l2": math.sqrt(sum(v * v for v in flat)),
    }


@pytest.mark.parametrize("scope,rows", [("all", slice(0, 5)), ("last", slice(4, 5)), ("first", slice(0, 1)),
                                        ("rest", slice(1, 5)), ("pos:2", slice(2, 3))])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_a_scope_merged_from_tokens_equals_its_values_taken_at_once(scope, rows, shift):
    x = np.random.default_rng(1).standard_normal((5, 33)) * [[1], [100], [0.01], [3], [1]] + shift
    x[2, 4], x[3, 5], x[1, 0] = math.nan, math.inf, -math.inf
    found, want = token_stats(x).at(scope), direct(x[rows])
    for name, value in want.items():
        scale = max(abs(value), want["absmax"] if name == "mean" else 0)
        error = abs(getattr(found, name) - value)
        room = (SHIFT_ERROR if shift and name == "std" else MERGE_ERROR) * scale
        assert error <= room, (scope, name, getattr(found, name), value, error, room)
    assert found.count == x[rows].size
    assert (found.nan, found.inf) == (np.isnan(x[rows]).sum(), np.isinf(x[rows]).sum())


def test_the_spread_is_the_sample_standard_deviation():
    assert token_stats(np.array([[1.0, 3.0]])).at("all").std == math.sqrt(2)


def test_one_token_comes_back_to_the_last_bit():
    cell = token_stats(np.random.default_rng(0).standard_normal((3, 7)) * 0.1)
    for token in range(3):
        assert cell.at(f"pos:{token}").mean == cell.rows["mean"][token]
        assert cell.at(f"pos:{token}").std == math.sqrt(cell.rows["m2"][token] / 6)


def test_equal_tokens_have_no_spread_between_them():
    means, spreads = np.full(7, 0.1), np.full(7, 0.25)
    assert merge_moments(np.full(7, 3), means, spreads) == (21, 0.1, 1.75)


def test_nothing_finite_gives_none_and_counts():
    found = token_stats(np.array([[math.nan, math.inf], [-math.inf, math.nan]])).at("all")
    assert (found.mean, found.std, found.min, found.max, found.absmax, found.l2) == (None,) * 6
    assert (found.peak_token, found.peak_channel) == (None, None)
    assert (found.count, found.nan, found.inf, found.nan_token, found.nan_channel) == (4, 2, 2, 0, 0)


def test_a_token_with_nothing_finite_leaves_the_others_alone():
    x = np.array([[math.nan, math.nan], [2.0, -5.0], [math.inf, math.inf]])
    found = token_stats(x).at("all")
    assert (found.min, found.max, found.absmax, found.mean) == (-5.0, 2.0, 5.0, -1.5)
    assert (found.peak_token, found.peak_channel) == (1, 1)


def test_a_single_finite_value_has_no_spread_to_tell():
    found = token_stats(np.array([[math.nan, 4.0]])).at("all")
    assert (found.mean, found.std, found.l2) == (4.0, None, 4.0)


def test_a_cell_of_one_value_has_a_spread_of_0_and_one_of_nan_has_none():
    assert token_stats(np.array([[4.0], [6.0]])).at("last").std == 0.0
    assert token_stats(np.array([[4.0], [6.0]])).at("all").std == 2.0**0.5
    assert token_stats(np.array([[math.nan]])).at("all").std is None


def test_a_tie_names_the_lowest_token_and_channel():
    found = token_stats(np.array([[1.0, 2.0, 0.0], [0.0, -2.0, 2.0]])).at("all")
    assert (found.absmax, found.peak_token, found.peak_channel) == (2.0, 0, 1)


def test_the_first_nan_of_the_scope_is_placed():
    x = np.zeros((4, 3))
    x[1, 2] = x[3, 0] = math.nan
    cell = token_stats(x)
    assert [(s.nan_token, s.nan_channel) for s in map(cell.at, ("all", "rest", "last", "first"))] == [
        (1, 2), (1, 2), (3, 0), (None, None)]


def test_zeros_count_signed_ones_too():
    assert token_stats(np.array([[0.0, -0.0, 1.0]])).at("all").zero == 2


def test_a_scope_without_a_token_is_none():
    cell = token_stats(np.ones((1, 3)))
    assert cell.at("rest") is None and cell.at("pos:1") is None
    assert {cell.at(s) for s in ("all", "last", "first")} == {cell.at("all")}


def test_the_logits_one_row_is_the_last_position():
    cell = token_stats(np.ones((1, 3)), first=6)
    assert cell.at("last").count == 3 and cell.at("last").peak_token == 6
    assert cell.at("pos:6") == cell.at("last")
    assert cell.at("first") is None and cell.at("pos:0") is None


def test_groups_of_nothing_merge_to_nothing():
    empty = np.zeros(2)
    assert merge_moments(empty.astype(np.int64), empty, empty) == (0, 0.0, 0.0)


def test_a_published_scope_is_given_as_it_was_published():
    said = Stats(std=1.25)
    cell = replace(token_stats(np.ones((2, 3))), published={"all": said})
    assert cell.at("all") is said
    assert cell.at("last").std == 0.0


def test_a_source_of_scopes_has_no_other_scope():
    cell = ScopeStats({"last": Stats(std=1.0)})
    assert [cell.at(s) is None for s in SCOPES] == [True, False, True, True]


def test_tiny_and_huge_values_neither_vanish_nor_overflow():
    tiny, huge = (token_stats(np.array([[-s, s]], dtype=np.float32)).at("all").std for s in (1e-45, 3e38))
    assert tiny > 0 and math.isfinite(huge)
