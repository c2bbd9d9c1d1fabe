"""The operations of a layer equal plain float64 numpy written apart from them; YaRN is that of transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core.model.layers import Rope
from core.model.ops import attend, rms_norm, rope_angles, rotate, silu

FLOAT64 = 1e-12  # relative: the same formula in another order of summation
FLOAT32 = 2e-6   # relative: sums of at most 64 products in float32
YARN = 1e-5      # absolute: transformers takes its angles in float32, over 64 positions


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def assert_close(got: torch.Tensor, want: np.ndarray, tolerance: float) -> None:
    x = got.double().numpy()
    assert x.shape == want.shape
    far = np.abs(x - want)
    at = np.unravel_index(far.argmax(), far.shape)
    limit = tolerance * max(1.0, float(np.abs(want).max()))
    assert far[at] <= limit, f"at {at}: {x[at]!r} against {want[at]!r}, {far[at]:.3g} apart, {limit:.3g} allowed"


def turned(x_TNH: np.ndarray, angle_TP: np.ndarray, pairing: str) -> np.ndarray:
    """Turn pair i of each head as a complex number by e^(i angle), one by one."""
    out = x_TNH.copy()
    n_token, n_head, _ = x_TNH.shape
    n_pair = angle_TP.shape[1]
    for t in range(n_token):
        for n in range(n_head):
            for i in range(n_pair):
                a, b = (2 * i, 2 * i + 1) if pairing == "adjacent" else (i, i + n_pair)
                turn = complex(math.cos(angle_TP[t, i]), math.sin(angle_TP[t, i]))
                z = complex(x_TNH[t, n, a], x_TNH[t, n, b]) * turn
                out[t, n, a], out[t, n, b] = z.real, z.imag
    return out


def attended(q_TNH: np.ndarray, k_SKH: np.ndarray, v_SKH: np.ndarray) -> np.ndarray:
    """Causal attention, a query and a head at a time; query head n reads key head n // (N / K)."""
    n_token, n_head, width = q_TNH.shape
    n_past, group = len(k_SKH) - n_token, n_head // k_SKH.shape[1]
    out = np.zeros((n_token, n_head, width))
    for t in range(n_token):
        for n in range(n_head):
            seen = n_past + t + 1
            scores = np.array([q_TNH[t, n] @ k_SKH[s, n // group] / math.sqrt(width) for s in range(seen)])
            share = np.exp(scores - scores.max())
            out[t, n] = (share / share.sum()) @ v_SKH[:seen, n // group]
    return out.reshape(n_token, -1)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x, w = numbers(5, 64), numbers(64, seed=1)
    want = np.array([row / math.sqrt(sum(v * v for v in row) / len(row) + 1e-3) * w for row in x])
    assert_close(rms_norm(tensor(x), tensor(w), 1e-3), want, FLOAT64)
    assert_close(rms_norm(tensor(x).float(), tensor(w).float(), 1e-3), want, FLOAT32)


def test_rms_norm_of_zeros_is_zero_and_not_nan():
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


def test_rms_norm_of_a_head_works_over_its_last_axis_only():
    x, w = numbers(3, 4, 16), numbers(16, seed=2)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w
    assert_close(rms_norm(tensor(x), tensor(w), 1e-6), want, FLOAT64)


def test_silu_is_x_over_one_plus_e_to_minus_x():
    x = np.array([-700.0, -20.0, -1.0, 0.0, 0.5, 3.0, 700.0])
    want = np.array([v / (1 + math.exp(-v)) for v in x])
    assert_close(silu(tensor(x)), want, FLOAT64)


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("dim", [16, 8])
def test_rope_turns_each_pair_by_its_angle_and_passes_the_rest(pairing, dim):
    x = numbers(5, 3, 16)
    angle = np.array([[(7 + t) * 10000.0 ** (-2 * i / dim) for i in range(dim // 2)] for t in range(5)])
    got = rotate(tensor(x), *rope_angles(Rope(10000.0, dim, pairing), 7, 5, None), pairing)
    assert_close(got, turned(x, angle, pairing), FLOAT64)
    assert torch.equal(got[..., dim:], tensor(x)[..., dim:])


def test_rope_leaves_position_0_and_every_length_as_they_are():
    x = tensor(numbers(4, 2, 8))
    got = rotate(x, *rope_angles(Rope(1e6, 8, "halves"), 0, 4, None), "halves")
    assert torch.equal(got[0], x[0])
    assert_close(got.norm(dim=-1), np.linalg.norm(x.numpy(), axis=-1), FLOAT64)


def test_the_score_of_two_turned_heads_depends_on_their_distance_only():
    q, k = numbers(1, 1, 32), numbers(1, 1, 32, seed=1)
    rope = Rope(1e6, 32, "adjacent")

    def score(at_q: int, at_k: int) -> float:
        a, b = (rotate(tensor(v), *rope_angles(rope, at, 1, None), "adjacent") for v, at in ((q, at_q), (k, at_k)))
        return float((a * b).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-9)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-3)


def test_the_two_pairings_are_one_rotation_of_permuted_channels():
    x = tensor(numbers(4, 2, 12))
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    angles = rope_angles(Rope(500.0, 12, ""), 3, 4, None)
    assert_close(rotate(x[..., order], *angles, "halves"), rotate(x, *angles, "adjacent")[..., order].numpy(), FLOAT64)


def test_linear_scaling_divides_every_position():
    plain = rope_angles(Rope(1e4, 16, "halves"), 0, 9, None)
    scaled = rope_angles(Rope(1e4, 16, "halves", scaling="linear", factor=4.0), 0, 33, None)
    for a, b in zip(plain, scaled, strict=True):
        assert_close(b[::4], a.numpy(), FLOAT64)


def test_rope_freqs_divide_each_frequency_of_their_own():
    factors = np.array([1.0, 2.0, 8.0, 0.5])
    cos, sin = rope_angles(Rope(1e4, 8, "adjacent"), 5, 3, tensor(factors).float())
    angle = np.array([[(5 + t) * 1e4 ** (-2 * i / 8) / factors[i] for i in range(4)] for t in range(3)])
    assert_close(cos, np.cos(angle), FLOAT64)
    assert_close(sin, np.sin(angle), FLOAT64)


def yarn(rope: Rope, n_token: int) -> tuple[np.ndarray, np.ndarray]:
    """YaRN as its paper has it: pairs that turn over beta_fast times stay, under beta_slow stretch, a ramp between."""
    half = rope.dim // 2
    freq = np.array([rope.base ** (-2 * i / rope.dim) for i in range(half)])

    def end(turns: float) -> float:  # the channel pair that turns so often within the original context
        return rope.dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = max(math.floor(end(rope.beta_fast)), 0), min(math.ceil(end(rope.beta_slow)), rope.dim - 1)
    stretch = np.array([min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(half)])
    freq = freq / rope.factor * stretch + freq * (1 - stretch)
    angle = np.arange(n_token)[:, None] * freq
    size = 1 + 0.1 * math.log(rope.factor)
    return np.cos(angle) * size, np.sin(angle) * size


@pytest.mark.parametrize(
    ("base", "dim", "factor", "context"), [(1e6, 128, 4.0, 32768), (1e4, 64, 2.0, 512), (1e4, 8, 16.0, 64)])
def test_yarn_stretches_slow_pairs_and_keeps_fast_ones(base, dim, factor, context):
    rope = Rope(base, dim, "halves", scaling="yarn", factor=factor, original_context=context)
    for got, want in zip(rope_angles(rope, 0, 64, None), yarn(rope, 64), strict=True):
        assert_close(got, want, FLOAT64)


@pytest.mark.parametrize(("base", "dim", "factor", "context"), [(1e6, 128, 4.0, 32768), (1e4, 64, 2.0, 512)])
def test_yarn_is_that_of_transformers(base, dim, factor, context):
    pytest.importorskip("transformers")
    from transformers import Qwen2Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context, "rope_theta": base}
    config = Qwen2Config(
        hidden_size=4 * dim, num_attention_heads=4, num_key_value_heads=4, rope_theta=base, rope_scaling=scaling,
        max_position_embeddings=int(context * factor))
    freq, size = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    angle = np.arange(64)[:, None] * freq.double().numpy()
    rope = Rope(base, dim, "halves", scaling="yarn", factor=factor, original_context=context)
    cos, sin = rope_angles(rope, 0, 64, None)
    assert_close(cos, np.cos(angle) * size, YARN)
    assert_close(sin, np.sin(angle) * size, YARN)


def test_the_attention_factor_of_a_file_scales_cos_and_sin():
    plain, scaled = (rope_angles(Rope(1e4, 8, "halves", attention_factor=f), 1, 2, None) for f in (1.0, 1.25))
    assert_close(scaled[0], plain[0].numpy() * 1.25, FLOAT64)


@pytest.mark.parametrize(("n_head", "n_kv_head"), [(4, 4), (4, 2), (6, 1)])
def test_attention_is_causal_and_groups_share_their_keys(n_head, n_kv_head):
    q, k, v = numbers(7, n_head, 8), numbers(7, n_kv_head, 8, seed=1), numbers(7, n_kv_head, 8, seed=2)
    assert_close(attend(tensor(q), tensor(k), tensor(v)), attended(q, k, v), FLOAT64)
    assert_close(attend(*(tensor(t).float() for t in (q, k, v))), attended(q, k, v), FLOAT32)


@pytest.mark.parametrize("n_token", [1, 3, 7])
def test_attention_over_cached_keys_sees_the_past_and_not_the_future(n_token):
    q, k, v = numbers(n_token, 4, 8), numbers(7, 2, 8, seed=1), numbers(7, 2, 8, seed=2)
    assert_close(attend(tensor(q), tensor(k), tensor(v)), attended(q, k, v), FLOAT64)


def test_a_later_token_never_changes_an_earlier_one():
    q, k, v = (tensor(numbers(6, 2, 8, seed=i)) for i in range(3))
    before = attend(q, k, v)
    k[-1], v[-1] = 1e3, -1e6
    assert torch.equal(attend(q, k, v)[:-1], before[:-1])
