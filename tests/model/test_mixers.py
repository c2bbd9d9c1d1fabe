"""Each mixer is what its formula says, written once more as a slow loop in float64; its state goes on where it was.

Sizes are small and all different, so that an axis taken for another one shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from core.formats.open_model import open_model
from core.model.forward import forward
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Cache, Model, Tap
from core.model.stages import PREVIOUS
from core.trace.run import open_side
from tests.support.small_mixers import CASES, EPS, write_case

SAME = 1e-11  # relative, float64 on both sides, another order of sums
IDS = (3, 17, 5, 11, 2, 7, 9, 1)
Weights = Mapping[str, np.ndarray]  # of the layer, without blk.0.
Values = Mapping[str, torch.Tensor]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def rms(x: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + EPS)
    return y if weight is None else y * weight


def conv(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    weight, bias = w[f"{name}.weight"].reshape(x.shape[1], -1), w.get(f"{name}.bias", np.zeros(x.shape[1]))
    y = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(weight.shape[1]):
            if (before := t - weight.shape[1] + 1 + k) >= 0:
                y[t] += weight[:, k] * x[before]
        y[t] += bias
    return y


def slow_delta_net(w: Weights, h: np.ndarray, tiled: bool) -> np.ndarray:
    """Two key heads of width 3, four value heads of width 5."""
    K, V, N, H = 2, 4, 3, 5
    u, z = silu(conv(h @ w["attn_qkv.weight"].T, w, "ssm_conv1d")), h @ w["attn_gate.weight"].T
    y, S = np.zeros((len(h), V * H)), np.zeros((V, N, H))
    for t in range(len(h)):
        for j in range(V):
            key = j % K if tiled else j // (V // K)
            if tiled:
                beta, alpha = w["ssm_beta.weight"][j] @ h[t], w["ssm_alpha.weight"][j] @ h[t]
            else:  # of a key head: its two betas, then its two alphas
                beta, alpha = (w["ssm_ba.weight"][4 * key + j % 2 + at] @ h[t] for at in (0, 2))
            q, k = (u[t, at + key * N : at + (key + 1) * N] for at in (0, K * N))
            q, k = (x / np.sqrt(np.sum(x * x) + 1e-6) for x in (q, k))
            v = u[t, 2 * K * N + j * H : 2 * K * N + (j + 1) * H]
            S[j] *= np.exp(softplus(alpha + w["ssm_dt.bias"][j]) * w["ssm_a"][j])
            S[j] += np.outer(k, (v - S[j].T @ k) / (1 + np.exp(-beta)))
            o = rms(S[j].T @ q / np.sqrt(N), w["ssm_norm.weight"])
            y[t, j * H : (j + 1) * H] = o * silu(z[t, j * H : (j + 1) * H])
    return y @ w["ssm_out.weight"].T


def slow_mamba2(w: Weights, h: np.ndarray) -> np.ndarray:
    """Four heads of three channels in two groups, a state of five."""
    N, H, G, S = 4, 3, 2, 5
    p = h @ w["ssm_in.weight"].T
    z, xbc, dt = p[:, : N * H], p[:, N * H : -N], p[:, -N:]
    xbc = silu(conv(xbc, w, "ssm_conv1d"))
    y, state = np.zeros((len(h), N * H)), np.zeros((N, H, S))
    for t in range(len(h)):
        for n in range(N):
            g, step = n // (N // G), softplus(dt[t, n] + w["ssm_dt.bias"][n])
            x = xbc[t, n * H : (n + 1) * H]
            b, c = (xbc[t, N * H + at + g * S : N * H + at + (g + 1) * S] for at in (0, G * S))
            state[n] = state[n] * np.exp(step * w["ssm_a"].flat[n]) + step * np.outer(x, b)
            y[t, n * H : (n + 1) * H] = state[n] @ c + w["ssm_d"].flat[n] * x
    y = y * silu(z)
    if "ssm_norm.weight" in w:
        y = rms(y.reshape(-1, G, N * H // G), w["ssm_norm.weight"]).reshape(y.shape)
    return y @ w["ssm_out.weight"].T


def slow_mamba(w: Weights, h: np.ndarray, normed: bool = False) -> np.ndarray:
    """Ten channels, a state of four, a time step of rank 3."""
    E, S, R = 10, 4, 3
    p = h @ w["ssm_in.weight"].T
    x, z = silu(conv(p[:, :E], w, "ssm_conv1d")), p[:, E:]
    y, state = np.zeros((len(h), E)), np.zeros((E, S))
    for t in range(len(h)):
        parts = np.split(w["ssm_x.weight"] @ x[t], [R, R + S])
        dt, b, c = (rms(v, w.get(f"ssm_{n}_norm.weight")) if normed else v
                    for n, v in zip(("dt", "b", "c"), parts, strict=True))
        step = softplus(w["ssm_dt.weight"] @ dt + w["ssm_dt.bias"])
        for e in range(E):
            state[e] = state[e] * np.exp(step[e] * w["ssm_a"][e]) + step[e] * x[t, e] * b
            y[t, e] = (state[e] @ c + w["ssm_d"][e] * x[t, e]) * silu(z[t, e])
    return y @ w["ssm_out.weight"].T


def slow_short_conv(w: Weights, h: np.ndarray) -> np.ndarray:
    b, c, x = np.split(h @ w["shortconv.in_proj.weight"].T, 3, -1)
    return (c * conv(b * x, w, "shortconv.conv")) @ w["shortconv.out_proj.weight"].T


def slow_mla(w: Weights, h: np.ndarray) -> np.ndarray:
    """Three heads: keys of 5 + 4 turned channels, values of 7, a latent of 6."""
    N, O, P, V, R = 3, 5, 4, 7, 6
    q = rms(h @ w["attn_q_a.weight"].T, w["attn_q_a_norm.weight"]) @ w["attn_q_b.weight"].T if "attn_q_a.weight" in w \
        else h @ w["attn_q.weight"].T
    kv = h @ w["attn_kv_a_mqa.weight"].T
    latent = rms(kv[:, :R], w["attn_kv_a_norm.weight"])

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * 1e4 ** (-np.arange(0, P, 2) / P))
        return np.stack((z.real, z.imag), -1).ravel()

    y = np.zeros((len(h), N * V))
    for n in range(N):
        if "attn_kv_b.weight" in w:
            up = w["attn_kv_b.weight"][n * (O + V) : (n + 1) * (O + V)]
            k_plain, v = latent @ up[:O].T, latent @ up[O:].T
        else:
            k_plain, v = latent @ w["attn_k_b.weight"][n], latent @ w["attn_v_b.weight"][n].T
        for t in range(len(h)):
            mine = q[t, n * (O + P) : (n + 1) * (O + P)]
            scores = [(mine[:O] @ k_plain[s] + turned(mine[O:], t) @ turned(kv[s, R:], s)) / np.sqrt(O + P)
                      for s in range(t + 1)]
            share = np.exp(scores) / np.sum(np.exp(scores))
            y[t, n * V : (n + 1) * V] = share @ v[: t + 1]
    return y @ w["attn_output.weight"].T


def run(model: Model, ids: tuple[int, ...], cache: Cache | None = None, change: Tap | None = None) -> Values:
    """The stages of layer 0 in float64."""
    kept: dict[str, torch.Tensor] = {}

    def tap(layer: int | None, stage: str, value: torch.Tensor) -> torch.Tensor:
        value = value if change is None else change(layer, stage, value)
        if layer == 0:
            kept[stage] = value
        return value

    run_lockstep([ForwardRun(forward(model, ids, tap, cache), "f32", plain=True)])
    return kept


def relative(got: torch.Tensor, want: torch.Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    return float((got - want).norm() / want.norm())


SLOW: Mapping[str, Callable[[Weights, np.ndarray], np.ndarray]] = {
    "delta net": partial(slow_delta_net, tiled=True), "delta net, packed": partial(slow_delta_net, tiled=False),
    "mamba-2": slow_mamba2, "mamba-2 without a norm": slow_mamba2, "mamba": slow_mamba,
    "mamba with norms": partial(slow_mamba, normed=True), "mamba with norms alone": partial(slow_mamba, normed=True),
    "short convolution": slow_short_conv, "latent attention": slow_mla, "latent attention, joined": slow_mla,
}


@pytest.fixture(params=CASES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Weights, Model]:
    weights = write_case(tmp_path / "one.gguf", CASES[request.param])
    side = open_side(open_model(tmp_path / "one.gguf"), "cpu")
    return request.param, weights, replace(side.model, dtype=torch.float64)


def test_a_mixer_is_what_a_loop_over_tokens_and_heads_gives(made) -> None:
    name, weights, model = made
    seen = run(model, IDS)
    assert relative(seen["attn_out"], SLOW[name](weights, seen["attn_norm"].numpy())) < SAME


@pytest.mark.parametrize("cuts", [(5,), (1, 2), tuple(range(1, len(IDS)))], ids=["5 + 3", "1 + 1 + 6", "one by one"])
def test_a_mixer_goes_on_from_its_state_as_in_one_prefill(made, cuts) -> None:
    _, _, model = made
    whole, cache = run(model, IDS), Cache()
    parts = [run(model, IDS[a:b], cache) for a, b in zip((0, *cuts), (*cuts, len(IDS)), strict=True)]
    for stage in whole:
        assert relative(torch.cat([part[stage] for part in parts]), whole[stage]) < SAME, stage


def test_a_mixer_taps_the_stages_that_its_layer_names(made) -> None:
    _, _, model = made
    nodes = model.arch.layers[0].nodes
    assert {stage: value.shape[1] for stage, value in run(model, IDS).items()} == {s: n.width for s, n in nodes.items()}
    for node in nodes.values():
        named = [f"blk.0.{name}{part}" for name in node.weights for part in (".weight", ".bias", "")]
        assert not named or any(name in model.file.weights for name in named), named


def test_a_mixer_goes_on_with_what_the_tap_returns_and_reads_no_more_than_its_stage_says(made) -> None:
    _, _, model = made
    layer, clean = model.arch.layers[0], run(model, IDS)
    for changed in layer.nodes:
        seen = run(model, IDS, change=lambda _, stage, value, place=changed: value * 1.5 if stage == place else value)
        moved = {stage for stage in seen if not torch.equal(seen[stage], clean[stage])}
        wanted = {changed}
        for stage, node in layer.nodes.items():
            wanted |= {stage} if wanted & set(node.inputs) - {PREVIOUS} else set()
        assert {changed, "output"} <= moved <= wanted, changed
