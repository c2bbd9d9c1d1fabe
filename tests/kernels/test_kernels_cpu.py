"""The compiled products and statistics against float64, on every type and odd shapes; their bits in other company."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.kernels.cpu import build
from core.kernels.cpu.bindings import correlate, decode_fused, measure_fused, multiply_experts_fused, multiply_fused
from core.kernels.cpu.build import Absent, Library, library, load
from core.kernels.cpu.instruction_sets import usable_levels
from core.model import matmul
from core.model.matmul import Ask, expert_weight
from core.quant import activations
from core.quant.activations import q8_kind
from core.quant.dequantize import decode_weight
from core.quant.types import FUSED, QUANTS
from core.quant.weight import Weight
from core.system.errors import Cancelled
from core.system.paths import cache_folder
from core.trace import taps
from core.trace.stats import MASSIVE_MULTIPLE, MASSIVE_SIZE, PEAKS, ROW, TokenStats
from tests.quant.test_decode import assert_same_bits, judge
from tests.quant.test_decode import random_weight as random_bytes
from tests.support.random_weights import FLOAT32_NMSE, SCALES, random_weight, random_x
from tests.support.traces import UNROUNDED

HALF_ROUNDING = 2.0**-7  # of a product rounded to bfloat16 (2^-9), where cancellation left little of the sum more
LARGE = (MASSIVE_SIZE, MASSIVE_MULTIPLE)
USABLE = [v.name for v in usable_levels()]
EACH_RUN = (USABLE[0], "avx2", "plain")  # compiling takes ten seconds of a processor a level
LEVELS = [pytest.param(name, marks=() if name in EACH_RUN else pytest.mark.slow) for name in USABLE]
BY_BYTES = ("amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2")  # levels that multiply q8 as whole numbers


@functools.cache
def kernels(level: str = "") -> Library:
    """The kernels of a level (the chosen one where it is not named); skips where there is no compiler."""
    chosen = library()
    if isinstance(chosen, Absent):
        pytest.skip(f"no compiled kernels: {chosen.reason}")
    return load(next(v for v in usable_levels() if v.name == level), "for a test") if level else chosen


def product(weight: Weight, x: torch.Tensor, level: str = "") -> torch.Tensor:
    return multiply_fused(kernels(level), weight, x, lambda: None)


def with_threads(*counts: int) -> Iterator[int]:
    """Each of these thread counts in turn; then the usual one."""
    usual = torch.get_num_threads()
    try:
        for n in counts:
            torch.set_num_threads(n)
            yield n
    finally:
        torch.set_num_threads(usual)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("quant", FUSED)
@pytest.mark.parametrize(("rows", "cols", "tokens"), [
    (1, 256, 1), (3, 512, 2), (37, 1792, 7), (65, 3584, 6), (33, 256, 32), (18, 768, 128), (5, 256, 512)])
def test_a_product_is_float64_s_within_float32_rounding(quant: str, rows: int, cols: int, tokens: int) -> None:
    weight, x = random_weight(quant, rows, cols), random_x(tokens, cols)
    want = x.double() @ decode_weight(weight).double().T
    nmse = float(((product(weight, x) - want) ** 2).sum() / (want**2).sum())
    assert nmse <= FLOAT32_NMSE, f"{quant} {rows} x {cols} x {tokens}: NMSE {nmse:.1e}, at most {FLOAT32_NMSE:.0e}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("quant", FUSED)
def test_a_product_of_bfloat16_is_that_of_decoded_weights(quant: str, level: str) -> None:
    for rows, cols, tokens in ((3, 512, 2), (37, 1792, 1), (65, 300, 17), (130, 256, 33), (9, 40, 5)):
        weight, x = random_weight(quant, rows, cols), random_x(tokens, cols)
        got = multiply_fused(kernels(level), weight, x, lambda: None, "bf16")
        want = activations.bf16(x).double() @ activations.bf16(decode_weight(weight)).double().T
        assert torch.equal(got, activations.bf16(got).float()), "the product is rounded, as torch's is"
        off = float(((got - want).abs() / (want.abs() + 2**-12 * want.norm(dim=1, keepdim=True))).max())
        assert off <= HALF_ROUNDING, f"{quant} {rows} x {cols} x {tokens} on {level}: off by {off:.1e}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("quant", [name for name in FUSED if q8_kind(QUANTS[name], 1792)])
@pytest.mark.parametrize("tokens", [1, 33])
def test_a_product_of_activations_as_ggml_rounds_them_is_float64_s(quant: str, level: str, tokens: int) -> None:
    weight, x, kind = random_weight(quant, 37, 1792), random_x(tokens, 1792), q8_kind(QUANTS[quant], 1792)
    x[0, :256], x[-1, 300:310], x[0, 512:768] = 0, 40, x[0, 512:768] * 1e-7
    got, rounded = multiply_fused(kernels(level), weight, x, lambda: None, kind), getattr(activations, kind)(x)
    assert same_bits(got, product(weight, rounded, level)) or level in BY_BYTES
    want = rounded.double() @ decode_weight(weight).double().T
    nmse = float(((got - want) ** 2).sum() / (want**2).sum())
    assert nmse <= FLOAT32_NMSE, f"{quant} on {level}: NMSE {nmse:.1e}, at most {FLOAT32_NMSE:.0e}"


@pytest.mark.parametrize("kind", ["q8_k", "q8_0", "bf16"])
def test_a_rounded_product_s_bits_do_not_depend_on_company_or_threads(kind: str) -> None:
    weight, x = random_weight("Q4_K", 77, 2048), random_x(40, 2048)
    together = multiply_fused(kernels(), weight, x, lambda: None, kind)
    for threads in with_threads(1, 2, 3):
        for first, last in ((0, 1), (3, 5), (7, 40)):
            alone = multiply_fused(kernels(), weight, x[first:last], lambda: None, kind)
            assert same_bits(alone, together[first:last]), (threads, first, last)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("quant", "kind"), [("Q4_K", "f32"), ("Q4_K", "q8_k"), ("Q5_0", "q8_0"), ("F16", "bf16")])
def test_experts_together_have_the_bits_of_each_alone(quant: str, kind: str, level: str) -> None:
    n_expert, rows, cols = 5, 600, 256
    weight, x = random_weight(quant, n_expert * rows, cols), random_x(21, cols)
    weight = replace(weight, shape=(n_expert, rows, cols))
    experts = torch.tensor([4, 0, 2, 4, 4, 0, 0] + [4] * 14)  # 1 and 3 are nobody's, 2 is one row's
    got = [multiply_experts_fused(kernels(level), weight, x, experts, lambda: None, kind) for _ in with_threads(1, 3)]
    for e in experts.unique().tolist():
        alone = multiply_fused(kernels(level), expert_weight(weight, e), x[experts == e], lambda: None, kind)
        assert all(same_bits(each[experts == e], alone) for each in got), e


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16", "f16"])
def test_products_side_by_side_have_the_bits_of_each_alone(compute: str) -> None:
    kernels()
    shapes = (("Q4_K", 77), ("Q6_K", 40), ("Q4_K", 64), ("Q5_0", 3))
    weights = [random_weight(quant, rows, 512, seed) for seed, (quant, rows) in enumerate(shapes)]
    for some in (weights[:3], weights):  # of one kind under q8, of two
        asks = [Ask(random_x(n, 512, n), compute, plain) for n, plain in ((3, False), (1, False), (2, True))]
        for part in (asks[:1], asks[:2], asks):
            together = matmul.multiply_joined(some, part, lambda: None)
            alone = [matmul.multiply(weight, part, lambda: None) for weight in some]
            for i, y in enumerate(together):
                assert same_bits(y, torch.cat([products[i] for products in alone], -1)), (i, len(some), len(part))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["q8_k", "q8_0", "bf16"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_rounded_product_shows_what_is_not_finite_in_its_token_and_row_only(
    kind: str, level: str, bad: float
) -> None:
    weight, x = random_weight("Q4_K", 40, 512), random_x(9, 512)
    weight.data.reshape(40, -1)[2, :2] = np.array([0x7E01], "<u2").view(np.uint8)
    x[4, 300] = bad
    out = multiply_fused(kernels(level), weight, x, lambda: None, kind)
    assert torch.isfinite(out).tolist() == [[t != 4 and r != 2 for r in range(40)] for t in range(9)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("quant", FUSED)
def test_compiled_decoders_have_gguf_py_s_bits(quant: str, level: str) -> None:
    block = QUANTS[quant].block
    for cols in (3 * block, block + 5):
        weight = random_bytes(quant, 9, cols)
        out = decode_fused(kernels(level), weight, 2, 9, torch.empty(7, cols))
        assert_same_bits(out.numpy(), judge(weight)[2:])


@pytest.mark.parametrize("quant", FUSED)
@pytest.mark.parametrize("cols", [1, 31, 40, 300, 1537])
def test_a_padded_row_s_tail_does_not_count(quant: str, cols: int) -> None:
    weight, x = random_weight(quant, 9, cols), random_x(5, cols)
    want = x.double() @ decode_weight(weight).double().T
    nmse = float(((product(weight, x) - want) ** 2).sum() / (want**2).sum())
    assert nmse <= FLOAT32_NMSE, f"{quant} with {cols} columns: NMSE {nmse:.1e}, at most {FLOAT32_NMSE:.0e}"


@pytest.mark.parametrize("quant", FUSED)
def test_a_token_s_bits_do_not_depend_on_its_company_or_the_threads(quant: str) -> None:
    weight, x = random_weight(quant, 77, 2048), random_x(40, 2048)
    usual = torch.get_num_threads()
    together = product(weight, x)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for first, last in ((0, 1), (3, 5), (1, 8), (7, 40), (0, 40)):
                assert same_bits(product(weight, x[first:last]), together[first:last]), (threads, first, last)
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("quant", FUSED)
def test_a_row_s_bits_do_not_depend_on_its_place(quant: str) -> None:
    weight, x = random_weight(quant, 45, 512), random_x(3, 512)
    size, together = len(weight.data) // 45, product(weight, x)
    for row in (0, 1, 31, 32, 44):
        alone = Weight("row", quant, (1, 512), weight.data[row * size:(row + 1) * size])
        assert same_bits(product(alone, x)[:, 0], together[:, row]), row


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("quant", FUSED)
def test_every_level_of_this_processor_agrees(quant: str, level: str) -> None:
    weight, x = random_weight(quant, 21, 1792), random_x(7, 1792)
    want = x.double() @ decode_weight(weight).double().T
    nmse = float(((product(weight, x, level) - want) ** 2).sum() / (want**2).sum())
    assert nmse <= FLOAT32_NMSE, f"{quant} on {level}: NMSE {nmse:.1e}, at most {FLOAT32_NMSE:.0e}"


@pytest.mark.parametrize("quant", SCALES)
@pytest.mark.parametrize(("half", "kind"), [(0x7C00, "inf"), (0xFC00, "-inf"), (0x7E01, "nan")])
def test_a_scale_that_is_not_finite_shows_in_its_row_only(quant: str, half: int, kind: str) -> None:
    weight, x = random_weight(quant, 5, 512), random_x(8, 512)
    weight.data.reshape(5, -1)[2, SCALES[quant][0]:SCALES[quant][0] + 2] = np.array([half], "<u2").view(np.uint8)
    got, want = product(weight, x), x @ decode_weight(weight).T
    assert torch.isfinite(got).all(0).tolist() == [True, True, False, True, True], kind
    assert torch.equal(torch.nan_to_num(got[:, 2]), torch.nan_to_num(want[:, 2])), (got[:, 2], want[:, 2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_shows_in_its_token_only(bad: float) -> None:
    weight, x = random_weight("Q4_K", 40, 512), random_x(9, 512)
    x[4, 300] = bad
    out = product(weight, x)
    want = x[4] @ decode_weight(weight).T
    assert torch.isfinite(out).all(1).tolist() == [t != 4 for t in range(9)]
    assert torch.equal(torch.nan_to_num(out[4]), torch.nan_to_num(want)), (out[4], want)


def test_lanes_share_one_call_and_keep_their_own_compute() -> None:
    weight, x = random_weight("Q6_K", 30, 512), random_x(4, 512)
    asks = [Ask(x, "f32"), Ask(x[:1], "f32"), Ask(x, "q8"), Ask(x.double(), "f32"), Ask(x, "bf16")]
    together = matmul.multiply(weight, asks, lambda: None)
    for got, ask in zip(together, asks, strict=True):
        alone = matmul.multiply(weight, [ask], lambda: None)[0]
        assert got.dtype == ask.x.dtype and torch.equal(got, alone), ask.compute
    want = x.double() @ decode_weight(weight).double().T
    assert torch.equal(together[3], want)
    assert 1e-6 < float((together[2] - want).norm() / want.norm()) < 1e-1, "q8 rounds its activations"


def test_a_run_is_cancelled_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kernels.cpu.bindings.CALL_MACS", 64 * 256)
    asked = []

    def cancelled() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled("the run was cancelled")

    with pytest.raises(Cancelled):
        multiply_fused(kernels(), random_weight("Q8_0", 500, 256), random_x(1, 256), cancelled)


def test_without_a_compiler_the_reason_is_said_and_weights_are_decoded(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    fresh = functools.cache(library.__wrapped__)
    monkeypatch.setattr(matmul, "library", fresh)
    assert build.pending_build() is None
    said = matmul.kernel_path("f32", torch.device("cpu"))
    assert said.startswith("decode-then-multiply") and "no C++ compiler was found" in said
    weight, x = random_weight("Q4_K", 6, 256), random_x(2, 256)
    assert torch.equal(matmul.multiply(weight, [Ask(x, "f32")], lambda: None)[0], x @ decode_weight(weight).T)


def test_a_compiler_that_fails_is_named_and_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    fake, calls = tmp_path / "bad-c++", tmp_path / "calls"
    fake.write_text(f"#!/bin/sh\necho call >> {calls}\necho 'error: out of luck' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(fake))
    for _ in range(2):
        said = library.__wrapped__()
        assert isinstance(said, Absent) and "out of luck" in said.reason
    assert len(calls.read_text().splitlines()) == len(USABLE)
    assert {p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()} == {".failed"}
    assert build.pending_build() is None


def test_a_full_disk_is_said_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    if build._compiler() is None:
        pytest.skip("no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "run_program", lambda *words, **more: pytest.fail("it compiled"))
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    said = library.__wrapped__()
    assert isinstance(said, Absent) and "has room for 1000 bytes" in said.reason


def test_of_those_that_start_at_once_one_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    fake, calls = tmp_path / "slow-c++", tmp_path / "calls"
    fake.write_text(f'#!/bin/sh\necho call >> {calls}\nsleep 0.2\nfor last; do :; done\necho made > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(fake))
    target = cache_folder() / "kernels" / "level.so"
    with ThreadPoolExecutor(4) as crew:  # a lock of a folder holds between threads as between processes
        list(crew.map(lambda _: build._compile(usable_levels()[0], target), range(4)))
    assert calls.read_text().splitlines() == ["call"]
    assert build._is_whole(target)


def test_the_path_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_TUI_KERNEL", "decode")
    assert isinstance(library.__wrapped__(), Absent)
    monkeypatch.setenv("APR_TUI_KERNEL", "of the moon")
    said = library.__wrapped__()
    assert isinstance(said, Absent) and USABLE[-1] in said.reason


@pytest.mark.parametrize("quant", ["Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("size", [1e-38, 1e-33, 1e-20, 1e20, 1e30])
def test_small_and_large_activations_keep_their_digits(quant: str, size: float) -> None:
    weight, x = random_weight(quant, 20, 512), random_x(5, 512) * size
    want = x.double() @ decode_weight(weight).double().T
    nmse = float(((product(weight, x) - want) ** 2).sum() / (want**2).sum())
    assert nmse <= (1e-3 if size < 1e-36 else FLOAT32_NMSE), nmse  # what is subnormal has few digits to begin with


@pytest.mark.parametrize("quant", ["Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_massive_channel_does_not_drown_the_others(quant: str, tokens: int) -> None:
    weight, x = random_weight(quant, 64, 1024), random_x(tokens, 1024)
    x[:, 300] = 3e4
    full = decode_weight(weight)
    want = x.double() @ full.double().T
    plain, ours = (float(((y - want) ** 2).sum() / (want**2).sum()) for y in (x @ full.T, product(weight, x)))
    assert ours <= max(20 * plain, FLOAT32_NMSE), f"{quant}: NMSE {ours:.1e}, of a plain float32 product {plain:.1e}"


def test_what_an_earlier_product_left_behind_a_row_s_end_does_not_show() -> None:
    spoilt = Weight("nan", "F32", (8, 48), np.full(8 * 48 * 4, 0xFF, np.uint8))
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.isnan(product(spoilt, random_x(2, 48))).all()
        assert torch.isfinite(product(random_weight("F16", 8, 40), random_x(2, 40))).all()
    finally:
        torch.set_num_threads(usual)


def values(tokens: int, width: int, kind: str) -> torch.Tensor:
    x = random_x(tokens, width)
    if kind == "far from zero":
        x = x * 1e-3 + 1e4
    elif kind == "bad":
        x[tokens // 2, width // 2], x[0, 0], x[-1, -1] = float("nan"), float("inf"), -float("inf")
    elif kind == "zeros":
        x[:, ::2] = 0
        x[-1] = -0.0
    return x


def measured(x: torch.Tensor) -> tuple[dict[str, np.ndarray], list]:
    rows, peaks = measure_fused(kernels(), [x], [[]], ROW, PEAKS, LARGE)
    return {name: rows[name][0] for name in ROW.names}, list(TokenStats(x.shape[1], 0, rows, 0, peaks).top)


@pytest.mark.parametrize("kind", ["random", "far from zero", "bad", "zeros"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (1, 7), (3, 16), (2, 33), (9, 100), (40, 4096), (65, 2100)])
def test_compiled_statistics_are_torch_s(tokens: int, width: int, kind: str) -> None:
    x = values(tokens, width, kind)
    got, top = measured(x)
    want = taps._moments(x)
    assert set(want) == set(ROW.names)
    for name in ROW.names:
        room = 0 if name in UNROUNDED else 1e-12
        assert np.allclose(got[name], want[name], rtol=room, atol=room), (name, got[name], want[name])
    assert top == taps._top_channels(x)


def test_rows_of_other_columns_are_refused() -> None:
    with pytest.raises(AssertionError, match="other columns"):
        measure_fused(kernels(), [random_x(2, 8)], [[]], np.dtype([*ROW.descr, ("more", np.float64)]), PEAKS, LARGE)


@pytest.mark.parametrize("kind", ["random", "bad"])
def test_compiled_statistics_of_a_token_do_not_depend_on_its_company_or_the_threads(kind: str) -> None:
    x = values(64, 3000, kind)
    usual = torch.get_num_threads()
    together = measured(x)[0]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert measured(x)[1] == taps._top_channels(x)
            alone = [measured(x[t:t + 1])[0] for t in (0, 31, 63)]
            for name, column in together.items():
                assert column[[0, 31, 63]].tobytes() == np.concatenate([a[name] for a in alone]).tobytes(), name
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("width", [1, 5, 8, 100, 129, 1000, 8960])
def test_a_compiled_correlation_has_numpy_s_bits(width: int) -> None:
    left, right = random_x(2, width), random_x(2, width, seed=5) + 2
    a, b = (v[1].numpy().astype(np.float64) for v in (left, right))
    a, b = a - a.mean(), b - b.mean()
    there = (float(left[1, width - 1]), float(right[1, width - 1]))
    assert correlate(kernels(), left, right, 1, width - 1) == (*there, (a * b).sum(), (a * a).sum(), (b * b).sum())
    left[1, width // 2] = float("inf")
    assert correlate(kernels(), left, right, 1, 0) is None


@pytest.mark.parametrize("seed", range(40))
def test_compiled_massive_values_are_torch_s(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    x = random_x(int(rng.integers(1, 40)), int(rng.integers(1, 300)), seed) * float(rng.random())
    for value in rng.choice([5000.0, -5000.0, float("nan"), float("inf"), 900.0, -2e4], rng.integers(1, 8)):
        x[int(rng.integers(0, x.shape[0])), int(rng.integers(0, x.shape[1]))] = float(value)
    peaks = taps._top_channels(x)
    if not peaks:
        pytest.skip("nothing finite")
    alone, together = taps._massive(x, abs(peaks[0][2])), taps.measure(x, 3)
    monkeypatch.setattr(taps, "library", lambda: Absent("for a test"))
    assert alone == taps._massive(x, abs(peaks[0][2]))
    assert together.massive == taps.measure(x, 3).massive and together.top == taps.measure(x, 3).top


def test_products_asked_from_several_threads_at_once_are_right() -> None:
    weight, x = random_weight("Q4_K", 300, 1024), random_x(20, 1024)
    alone = product(weight, x)
    with ThreadPoolExecutor(4) as crew:
        assert all(same_bits(got, alone) for got in crew.map(lambda _: product(weight, x), range(40)))


def test_a_forked_child_multiplies_too() -> None:
    weight, x = random_weight("Q8_0", 300, 1024), random_x(20, 1024)
    alone = product(weight, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if same_bits(product(weight, x), alone) else 1)
    assert os.waitpid(child, 0)[1] == 0
