"""Gates of windows and tables: a norm that collapses, a gradient lost in noise, values near overflow, a NaN's birth.

Each is planted once in a real run; the estimates are held against their definitions.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.system.outcome import FAIL, NOT_MEASURED, PASS
from core.train.checks.windows import HEADROOM_BITS, NOISE_BATCHES, TABLES, WINDOW, judge_windows
from core.train.config import BETAS, TrainOptions, settle
from core.train.data.shards import Order
from core.train.events import GatesJudged, Note, StepTaken
from core.train.model import Block, Decoder, make_decoder
from core.train.peaks import EPS, ResidualRecorder, first_nonfinite, headroom
from core.train.reader import open_run
from core.train.records import ABORTED, DONE, Health, Step
from tests.support.training import events, logged_steps, run, same_weights, write_config

EXACT = 1e-4  # relative, of a figure that float32 sums in another order


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def plan(tmp_path):
    return settle(TrainOptions(tmp_path, steps=1000, warm_up=5))


def steps_of(*norms):
    return [Step(i, 3.0, norm, 1e-4, 1.0, 1.0, None, None, i, 1.0, i, str(i)) for i, norm in enumerate(norms)]


def judged(plan, id, steps=(), health=()):
    return next(gate for gate in judge_windows(plan, list(steps), list(health)) if gate.id == id)


def gate_of(result, id):
    return next(gate for gate in result.gates if gate.id == id)


# -- the gradient norm of a window

def test_the_published_fall_of_the_gradient_norm_is_a_collapse(plan):
    steps = steps_of(*[9.0] * 5, *[0.08] * 40, *[0.01] * WINDOW)
    gate = judged(plan, "INV-COLLAPSE", steps)
    assert gate.verdict == FAIL
    assert "0.12 x the highest window before, the lowest: 0.01 in steps 45..54" in gate.measured
    assert judged(plan, "INV-COLLAPSE", steps[:-WINDOW]).verdict == PASS, "the warm-up's own fall is none"


def test_one_small_step_is_no_collapse_and_one_window_is_not_measured(plan):
    steps = steps_of(*[1.0] * 18, 1e-6, *[1.0] * 10)
    assert judged(plan, "INV-COLLAPSE", steps).verdict == PASS
    assert judged(plan, "INV-COLLAPSE", steps[: 5 + 2 * WINDOW - 1]).verdict == NOT_MEASURED
    assert judged(plan, "INV-COLLAPSE").verdict == NOT_MEASURED


def test_a_norm_that_stays_zero_is_a_collapse(plan):
    assert judged(plan, "INV-COLLAPSE", steps_of(*[0.0] * 40)).verdict == FAIL


def test_a_gradient_that_collapses_in_a_run_is_told_while_it_goes_on(tmp_path, monkeypatch):
    whole, calls = Decoder.loss, []

    def loss(self, x, targets):
        calls.append(1)
        size = whole(self, x, targets)
        return size if len(calls) < 25 else size.detach() + 0.1 * (size - size.detach())

    monkeypatch.setattr(Decoder, "loss", loss)
    told = events(tmp_path, steps=45, steps_per_epoch=36)
    gates = next(e.gates for e in told if isinstance(e, GatesJudged))
    assert next(g for g in gates if g.id == "INV-COLLAPSE").verdict == FAIL
    notes = [e.text for e in told if isinstance(e, Note) and e.text.startswith("INV-COLLAPSE")]
    assert len(notes) == 1 and "x the highest window before" in notes[0]
    order = [e.text[:12] if isinstance(e, Note) else type(e) for e in told]
    assert order.index("INV-COLLAPSE") < len(order) - 1 - order[::-1].index(StepTaken), "before the last step"


# -- the gradient's noise

def test_the_noise_is_that_of_the_gradients_of_each_sequence_alone():
    arch = settle(TrainOptions(out=None, config="tiny")).arch
    arch = replace(arch, n_layer=2)
    model, batch = make_decoder(arch, 1), torch.randint(arch.n_vocab, (5, 17), generator=torch.manual_seed(0))
    watch = ResidualRecorder()
    model.tap = watch.tap
    model(batch[:, :-1], batch[:, 1:]).backward()
    alone = []
    for row in batch:
        kept = []

        def tap(x, kept=kept):
            x.retain_grad()
            kept.append(x)
            return x

        model.tap = tap
        model(row[None, :-1], row[None, 1:]).backward()
        normed = [x.detach() * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + EPS) for x in kept]
        alone.append(torch.cat([(x.grad * n).sum((0, 1)) for x, n in zip(kept, normed, strict=True)]))
    v_BK = torch.stack(alone).double()
    pairs = v_BK @ v_BK.T
    signal = float((pairs.sum() - pairs.trace()) / (5 * 4))  # the mean product of two different sequences' gradients
    noise = float(pairs.trace() / 5) - signal
    found = watch.noise()
    assert found == (pytest.approx(noise, rel=EXACT), pytest.approx(signal, rel=EXACT, abs=EXACT * noise))


def test_processes_estimate_together_what_one_does():
    gains = torch.randn(2, 6, 3, generator=torch.manual_seed(0))

    def watch(rows):
        return ResidualRecorder(gains={i: gains[i, rows] for i in range(2)})

    parts = []
    watch(slice(3, 6)).noise(lambda sums: parts.append(sums) or sums)
    both = watch(slice(0, 3)).noise(lambda sums: sums + parts[0])
    assert both == pytest.approx(watch(slice(0, 6)).noise(), rel=EXACT)
    assert watch(slice(0, 1)).noise() is None and ResidualRecorder().noise() is None


def noisy(n, signal, spread=0.1):
    return [Health(i, 120.0, "x", 8.0, signal + spread * (-1) ** i) for i in range(n)]


def test_a_gradient_below_its_noise_fails_where_enough_was_seen_and_is_not_measured_where_not(plan):
    assert judged(plan, "INV-NOISE", health=noisy(20, 0.5)).verdict == PASS
    lost = judged(plan, "INV-NOISE", health=noisy(200, 0.0))
    assert lost.verdict == FAIL and "no gradient stands out of the noise" in lost.measured
    few = judged(plan, "INV-NOISE", health=noisy(2 * TABLES, 0.0))
    assert few.verdict == NOT_MEASURED and "too few to tell" in few.measured
    assert judged(plan, "INV-NOISE", health=noisy(2 * TABLES - 2, 0.5)).verdict == NOT_MEASURED
    alone = [Health(i, 120.0, "x") for i in range(20)]  # one sequence a step
    assert "0 of 3 tables" in judged(plan, "INV-NOISE", health=alone).measured
    assert pytest.approx((1 + BETAS[0]) / (1 - BETAS[0]), rel=0.1) == NOISE_BATCHES


@pytest.mark.parametrize("is_noise", [True, False])
def test_a_run_on_text_without_any_order_is_caught_and_one_on_text_is_not(tmp_path, monkeypatch, is_noise):
    rng = np.random.default_rng(0)
    write_config(tmp_path / "small.toml", d_model=128, batch=4, seq=8)
    if is_noise:
        monkeypatch.setattr(
            Order, "batch", lambda self, cursor, n: rng.integers(0, 300, (n, self.seq + 1)).astype(np.uint32))
    gate = gate_of(run(tmp_path, steps=160, steps_per_epoch=160, grads_every=1, lr=1e-3), "INV-NOISE")
    assert gate.verdict == (FAIL if is_noise else PASS), gate.measured


# -- headroom

def test_headroom_is_counted_in_doublings_and_its_place_is_named():
    watch = ResidualRecorder()
    for value in (1.0, -2.0**10, 4.0):
        watch.tap(torch.full((2, 2, 4), value))
    bits, place = headroom(watch.peaks({"a": 512.0}), torch.float32)
    assert bits == pytest.approx(118, abs=1e-5) and place == "forward, after layer 0"
    assert headroom(watch.peaks({"a": 2048.0}), torch.float32)[1] == "gradient of a"
    assert headroom(watch.peaks({}), torch.bfloat16)[0] == pytest.approx(118, abs=0.01)
    assert headroom(watch.peaks({}), torch.float16)[0] == pytest.approx(6, abs=0.01)


class Scaled(torch.autograd.Function):
    """The identity; its backward multiplies."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def test_an_activation_gradient_near_overflow_fails_though_every_norm_is_sound(tmp_path, monkeypatch):
    whole, calls = Block.forward, []

    def forward(self, x, angles):  # layer 1 hands down a gradient 1e30 too large; layer 0 takes it back
        calls.append(len(calls) % 2)
        return whole(self, Scaled.apply(x, 1e30), angles) if calls[-1] else Scaled.apply(whole(self, x, angles), 1e-30)

    monkeypatch.setattr(Block, "forward", forward)
    result = run(tmp_path)
    gate = gate_of(result, "INV-HEADROOM")
    assert gate.verdict == FAIL and "backward, after layer 0" in gate.measured, gate.measured
    assert result.status == DONE and result.exit_code == 1
    assert float(gate.measured.split()[0]) < HEADROOM_BITS


def test_no_table_is_no_headroom(plan):
    assert judged(plan, "INV-HEADROOM").verdict == NOT_MEASURED


# -- where a NaN is born

@pytest.mark.parametrize(("plant", "says"), [
    (lambda out: out * math.nan, "born in the forward pass of layer 1"),
    (lambda out: Scaled.apply(out, math.inf), "born in the backward pass of layer 1"),
])
def test_a_value_that_is_not_finite_is_named_by_layer_and_direction(tmp_path, monkeypatch, plant, says):
    whole = Block.forward
    calls = []

    def forward(self, x, angles):
        out = whole(self, x, angles)
        calls.append(len(calls) % 2)  # a layer of two
        return plant(out) if calls[-1] == 1 and torch.is_grad_enabled() and len(calls) > 4 else out

    monkeypatch.setattr(Block, "forward", forward)
    result = run(tmp_path)
    assert result.status == ABORTED and result.sentence.startswith("INV-FINITE") and says in result.sentence


def test_a_nan_of_the_loss_alone_is_laid_to_the_head():
    watch = ResidualRecorder()
    x = torch.ones(2, 2, 4, requires_grad=True)
    (watch.tap(watch.tap(x) * 1) * math.nan).sum().backward()
    assert first_nonfinite(watch.peaks({})) == "born in the head or the loss"
    assert first_nonfinite([]) == "not seen again when the batch is run once more"


# -- watching

def test_watching_every_step_changes_no_bit(tmp_path):
    often, seldom = (run(tmp_path, out=tmp_path / str(n), grads_every=n) for n in (1, 100))
    assert logged_steps(often.out) == logged_steps(seldom.out) and same_weights(often.checkpoint, seldom.checkpoint)
    assert len(open_run(often.out).health) == 6 and len(open_run(seldom.out).health) == 1


def test_a_log_of_an_older_build_has_no_health(tmp_path):
    out = run(tmp_path).out
    rows = [json.loads(line) for line in (out / "grads.jsonl").read_text().splitlines()]
    (out / "grads.jsonl").write_text("".join(
        json.dumps({k: v for k, v in row.items() if k != "health"}) + "\n" for row in rows))
    view = open_run(out)
    assert view.health == () and view.grads.health is None
