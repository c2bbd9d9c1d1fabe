"""What a tap measures equals plain float64 arithmetic, whatever stands in the values; taps compose as they say."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from core.model.stages import SCOPES
from core.trace.stats import MASSIVE_SIZE, Stats
from core.trace.taps import BLOCK_VALUES, add_noise, chain, measure, no_tap, patch, record

EXACT = 1e-12  # relative: float64 sums in another order
NAN, INF = float("nan"), float("inf")


def by_hand(x_TW: np.ndarray, first: int = 0) -> Stats:
    """The statistics of a block of tokens by Python's own `statistics` (exact fractions), a value at a time."""
    values = [(t + first, c, float(v)) for t, row in enumerate(x_TW.tolist()) for c, v in enumerate(row)]
    finite = [(t, c, v) for t, c, v in values if math.isfinite(v)]
    nans = [(t, c) for t, c, v in values if math.isnan(v)]
    numbers = [v for _, _, v in finite]
    counts = {"count": len(values), "nan": len(nans), "inf": sum(math.isinf(v) for _, _, v in values),
              "zero": sum(v == 0 for _, _, v in values)}
    if nans:
        counts |= {"nan_token": min(nans)[0], "nan_channel": min(nans)[1]}
    if not finite:
        return Stats(**counts)
    top = max(abs(v) for v in numbers)
    peak = min((t, c) for t, c, v in finite if abs(v) == top)
    return Stats(
        **counts, mean=statistics.fmean(numbers), std=statistics.stdev(numbers) if len(numbers) > 1 else None,
        min=min(numbers), max=max(numbers), absmax=top, l2=math.sqrt(math.fsum(v * v for v in numbers)),
        peak_token=peak[0], peak_channel=peak[1],
    )


def assert_same(got: Stats | None, want: Stats) -> None:
    assert got is not None
    for name in Stats.__slots__:
        a, b = getattr(got, name), getattr(want, name)
        if isinstance(b, float) and name in ("mean", "std", "l2"):
            limit = EXACT * max(abs(b), want.absmax or 0.0)
            assert a is not None and abs(a - b) <= limit, f"{name}: {a!r} against {b!r}, {limit:.3g} allowed"
        else:
            assert a == b, f"{name}: {a!r} against {b!r}"


def values(kind: str, n_token: int = 7, width: int = 33) -> np.ndarray:
    x = np.random.default_rng(4).standard_normal((n_token, width)).astype(np.float32)
    if kind == "nan":
        x[2, 5 % width] = x[2, -3 % width] = x[-3, 0] = NAN
    elif kind == "inf":
        x[1, 3 % width], x[-1, -1], x[0, 0] = INF, -INF, 0.0
    elif kind == "mixed":
        x[0], x[3, :7], x[-2, -1], x[-1] = NAN, INF, NAN, 0.0
    elif kind == "all nan":
        x[:] = NAN
    elif kind == "constant":
        x[:] = -0.1
    elif kind == "far from zero":
        x = x * np.float32(1e-3) + np.float32(1e4)
    elif kind == "large":
        x *= np.float32(1e30)
    elif kind == "one finite":
        x[:] = NAN
        x[3, 4 % width] = 2.5
    return x


ROWS = {"all": slice(0, 7), "last": slice(6, 7), "first": slice(0, 1), "rest": slice(1, 7), "pos:3": slice(3, 4)}
KINDS = ("random", "nan", "inf", "mixed", "all nan", "constant", "far from zero", "large", "one finite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ROWS)
def test_each_scope_has_the_statistics_of_its_values_joined(kind, scope):
    x = values(kind)
    rows = ROWS[scope]
    assert_same(measure(torch.from_numpy(x)).at(scope), by_hand(x[rows], rows.start))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_channel_and_a_single_token_are_measured_too(kind):
    for x in (values(kind, 5, 1), values(kind, 7, 33)[3:4]):
        assert_same(measure(torch.from_numpy(x)).at("all"), by_hand(x))


def test_one_value_has_a_std_of_0():
    stats = measure(torch.tensor([[2.0]])).at("all")
    assert stats is not None and (stats.std, stats.mean, stats.count) == (0.0, 2.0, 1)


def test_no_tokens_measure_as_nothing_at_every_scope():
    stats = measure(torch.empty(0, 8))
    assert [stats.at(scope) for scope in SCOPES] == [None] * 4


def test_positions_count_from_the_first_row_given():
    x = values("nan")
    assert_same(measure(torch.from_numpy(x[2:]), first=2).at("all"), by_hand(x[2:], 2))
    assert measure(torch.from_numpy(x[6:]), first=6).at("first") is None
    assert_same(measure(torch.from_numpy(x[6:]), first=6).at("last"), by_hand(x[6:], 6))


def test_a_tie_goes_to_the_lowest_token_then_to_the_lowest_channel():
    x = torch.zeros(4, 9)
    x[1, 7], x[1, 3], x[3, 0] = 5.0, -5.0, 5.0
    stats = measure(x).at("all")
    assert stats is not None and (stats.absmax, stats.peak_token, stats.peak_channel) == (5.0, 1, 3)
    x[2, 8], x[2, 4] = NAN, NAN
    stats = measure(x).at("all")
    assert stats is not None and (stats.nan_token, stats.nan_channel) == (2, 4)


def test_tied_top_channels_are_the_lowest_ones():
    assert [c for c, _, _ in measure(torch.full((3, 40), -2.0)).top] == list(range(8))
    assert {t for _, t, _ in measure(torch.full((3, 40), -2.0)).top} == {0}


def test_top_channels_are_the_largest_of_each_channel_with_token_and_sign():
    x = torch.from_numpy(values("random"))
    x[2, 11], x[5, 11], x[0, 4], x[1, 1] = -9.0, 8.0, 7.0, NAN
    top = measure(x).top
    assert top[:2] == ((11, 2, -9.0), (4, 0, 7.0))
    best = sorted((-float(np.nanmax(np.abs(x.numpy()[:, c]))), c) for c in range(33))[:8]
    assert [c for c, _, _ in top] == [c for _, c in best]


def test_blocks_of_many_tokens_measure_as_one():
    width = 64
    x = np.random.default_rng(0).standard_normal((BLOCK_VALUES // width + 5, width)).astype(np.float32)
    x[-1, 3] = 77.0
    got = measure(torch.from_numpy(x)).at("all")
    assert got is not None and (got.peak_token, got.peak_channel, got.count) == (len(x) - 1, 3, x.size)
    assert got.std == pytest.approx(x.astype(np.float64).std(ddof=1), rel=EXACT)


def test_a_value_is_massive_over_100_and_over_1000_medians_in_at_most_4_channels():
    x = torch.full((3, 50), 0.1)
    x[0, 7], x[2, 7], x[1, 20] = 100.5, 150.0, -300.0
    massive = measure(x).massive
    assert massive is not None
    assert massive.places == ((1, 20, -300.0), (2, 7, 150.0)) and massive.median == pytest.approx(0.1)
    x[0, 1] = x[0, 2] = x[0, 3] = 200.0
    assert measure(x).massive is None, "five channels are no massive activation"
    assert measure(torch.full((3, 50), 0.1)).massive is None
    assert measure(torch.full((3, 50), 200.0)).massive is None, "100 times nothing: the median is as large"
    edge = torch.full((3, 50), 0.01)
    edge[0, 0] = MASSIVE_SIZE
    assert measure(edge).massive is None, "100 itself is not over 100"


def test_massive_values_are_found_beside_nan_and_inf():
    x = torch.full((3, 50), 0.1)
    x[0, 7], x[1, 1], x[1, 2], x[2, 7] = 500.0, NAN, INF, NAN
    massive = measure(x).massive
    assert massive is not None and massive.places == ((0, 7, 500.0),)


def test_factors_say_which_two_numbers_made_the_peak_and_how_they_correlate():
    rng = np.random.default_rng(1)
    left, right = (torch.from_numpy(rng.standard_normal((4, 16)).astype(np.float32)) for _ in range(2))
    left[2, 5], right[2, 5] = 9.0, -8.0
    factors = measure(left * right, factors={"ffn_silu": left, "ffn_up": right}).factors
    assert factors is not None
    assert (factors.token, factors.channel, factors.left, factors.right) == (2, 5, 9.0, -8.0)
    want = np.corrcoef(left[2].double().numpy(), right[2].double().numpy())[0, 1]
    assert factors.correlation == pytest.approx(want, rel=1e-9)


def test_factors_of_constants_or_beside_nan_have_a_correlation_of_finite_channels_or_none():
    left, right = torch.ones(1, 4), torch.ones(1, 4)
    factors = measure(left * right, factors={"ffn_silu": left, "ffn_up": right}).factors
    assert factors is not None and factors.correlation is None
    left, right = torch.tensor([[NAN, 1.0, 2.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    factors = measure(left * right, factors={"ffn_silu": left, "ffn_up": right}).factors
    assert factors is not None and factors.correlation == pytest.approx(float(np.corrcoef([1, 2, 4], [2, 3, 5])[0, 1]))


def test_jitter_is_seeded_and_of_one_rounding_unit():
    x = torch.ones(100, 100)
    a, b, c = (add_noise(2.0**-8, seed)(0, "qkv", x) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    off = (a - 1).abs()
    assert float(off.max()) <= 2.0**-8 and float(off.mean()) == pytest.approx(2.0**-9, rel=0.05)
    assert abs(float((a - 1).mean())) < 2.0**-8 / 50, "the noise leans to one side"


def test_a_tap_never_changes_what_it_records():
    x = torch.from_numpy(values("mixed"))
    before = x.clone()
    assert record(lambda place, stats: None, 7)(3, "ffn_up", x) is x
    assert torch.equal(x.view(torch.int32), before.view(torch.int32))
    assert no_tap(None, "logits", x) is x


def test_a_record_stands_after_a_patch_and_sees_what_the_forward_goes_on_with():
    seen = {}
    keep = {}
    tap = chain(patch({(1, "qkv"): lambda x: x * 2}), record(lambda place, stats: seen.update({place: stats}), 2, keep))
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert torch.equal(tap(1, "qkv", x), x * 2) and tap(2, "output", x) is x
    assert seen[1, "qkv"].at("all").max == 14.0 and seen[2, "output"].at("all").max == 7.0
    assert torch.equal(keep[1, "qkv"], x * 2)


def test_kept_values_are_copies():
    keep = {}
    x = torch.ones(2, 3)
    record(lambda place, stats: None, 2, keep)(0, "output", x)
    x.zero_()
    assert float(keep[0, "output"].sum()) == 6.0


def test_a_recorded_product_knows_its_own_factors_and_the_last_token_its_position():
    seen = {}
    tap = record(lambda place, stats: seen.update({place: stats}), 5)
    for layer, size in ((0, 1.0), (1, 3.0)):
        up, gate = torch.full((5, 4), size), torch.arange(20.0).reshape(5, 4)
        tap(layer, "ffn_up", up)
        tap(layer, "ffn_silu", gate)
        tap(layer, "ffn_swigl", up * gate)
    assert (0, "ffn_swigl") in seen and (1, "ffn_swigl") not in seen, "a layer is told when it ends"
    tap(1, "output", up)
    assert seen[1, "ffn_swigl"].factors.right == 3.0 and seen[1, "ffn_swigl"].factors.left == 19.0
    tap(None, "logits", torch.ones(1, 6))
    assert seen[None, "logits"].at("last").peak_token == 4
