"""Every rule of a sound run, and the planted fault that it catches. The faults are those of published runs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from core.model.ops import attend, rms_norm
from core.system.outcome import FAIL, NOT_MEASURED, PASS
from core.train.checks.invariants import InvariantState, StepObservation, first_violation, not_finite, schedule_notes
from core.train.config import TrainOptions, settle
from core.train.data.shards import Order
from core.train.records import ABORTED, DONE
from core.train.step import Measured, Stepper
from core.train.step import clip as sound_clip
from tests.support.training import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def aborted(tmp_path, rule: str, **changes):
    """Run with the fault planted; the run must end by that rule, its gate must fail, and no other.

    The golden run goes through the same code, so its gate may see the fault too.
    """
    result = run(tmp_path, **changes)
    failed = [gate.id for gate in result.gates if gate.verdict == FAIL and gate.id != "GATE-GPUTRAIN-005"]
    assert (result.status, result.sentence.split(":")[0], failed) == (ABORTED, rule, [rule]), result.sentence
    assert result.exit_code == 1 and json.loads((result.out / "run.json").read_text())["status"] == ABORTED
    return result


def test_a_sound_run_keeps_every_rule(tmp_path):
    result = run(tmp_path)
    assert result.status == DONE and result.exit_code == 0, result.sentence
    rules = {gate.id: gate.verdict for gate in result.gates if gate.id.startswith(("INV", "PROBE"))}
    windows = {id: rules.pop(id) for id in ("INV-COLLAPSE", "INV-NOISE", "INV-HEADROOM")}
    assert len(rules) == 10 and set(rules.values()) == {PASS}
    assert FAIL not in windows.values() and windows["INV-COLLAPSE"] == NOT_MEASURED, "6 steps are no window"
    assert {gate.id: gate.measured for gate in result.gates}["INV-CENSUS"] == "2 looks at all weights"


def test_a_rule_that_the_only_step_was_not_held_to_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("core.train.model.rms_norm", lambda x, w, eps: rms_norm(x, w.detach(), eps))
    verdicts = {gate.id: gate.verdict for gate in run(tmp_path).gates}
    ids = ("INV-FINITE", "INV-LOSS", "INV-GRADIENT", "INV-CLIP", "INV-RATE", "INV-CURSOR")
    assert [verdicts[id] for id in ids] == [PASS, PASS, FAIL, *[NOT_MEASURED] * 3]


def test_norms_that_never_receive_a_gradient_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("core.train.model.rms_norm", lambda x, w, eps: rms_norm(x, w.detach(), eps))
    result = aborted(tmp_path, "INV-GRADIENT")
    assert "blk.0.attn_norm.weight" in result.sentence and "and 2 more" in result.sentence
    assert result.checkpoint is not None and len((result.out / "train.jsonl").read_text().splitlines()) == 1


def test_layers_behind_a_cut_residual_are_named(tmp_path, monkeypatch):
    from core.train.model import Block

    whole = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, angles: whole(self, x.detach(), angles))
    assert "blk.0.attn_norm.weight" in aborted(tmp_path, "INV-GRADIENT").sentence


def test_clipping_by_the_fourth_power_of_the_norm_is_caught(tmp_path, monkeypatch):
    def clip(weights, limit):
        norm, _ = sound_clip(weights, float("inf"))
        for weight in weights:
            weight.grad /= norm**4
        return norm, torch.nn.utils.get_total_norm([w.grad for w in weights])

    monkeypatch.setattr("core.train.step.clip", clip)
    assert "after clipping" in aborted(tmp_path, "INV-CLIP").sentence


def optimizer_with(change):
    from core.train.step import make_optimizer

    def make(model):
        optimizer = make_optimizer(model)
        step = optimizer.step
        optimizer.step = lambda: change(optimizer, step)
        return optimizer

    return make


def test_a_scheduler_that_is_overruled_is_caught(tmp_path, monkeypatch):
    def change(optimizer, step):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        step()

    monkeypatch.setattr("core.train.runner.make_optimizer", optimizer_with(change))
    assert "the optimizer's learning rate is 0.001" in aborted(tmp_path, "INV-RATE").sentence


def test_an_update_that_is_made_twice_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr("core.train.runner.make_optimizer", optimizer_with(lambda optimizer, step: (step(), step())))
    assert "the first step moved norm weights by up to" in aborted(tmp_path, "INV-RATE").sentence


def test_a_loss_of_exactly_zero_is_caught(tmp_path, monkeypatch):
    from core.train.model import Decoder

    whole = Decoder.loss
    monkeypatch.setattr(Decoder, "loss", lambda self, x, targets: whole(self, x, targets) * 0)
    assert "is 0.0" in aborted(tmp_path, "INV-LOSS").sentence


def test_a_placeholder_for_an_exhausted_stream_is_caught(tmp_path, monkeypatch):
    whole = Stepper.take_step

    def step(self, number, batch, lr, statistics, wants_stop=False):
        real = whole(self, number, batch, lr, statistics, wants_stop)
        return Measured(1.0, 1.0, 1.0, lr, wants_stop) if number >= 2 else real

    monkeypatch.setattr(Stepper, "take_step", step)
    assert "step 3 repeats loss 1.0" in aborted(tmp_path, "INV-LOSS").sentence


def test_a_batch_that_comes_again_is_caught(tmp_path, monkeypatch):
    whole = Order.batch
    monkeypatch.setattr(Order, "batch", lambda self, cursor, n: whole(self, cursor % 8, n))
    assert "the batch of step 2" in aborted(tmp_path, "INV-BATCH").sentence


def test_a_loss_that_is_not_a_number_ends_the_run_before_it_is_logged_and_the_weights_are_kept(tmp_path, monkeypatch):
    from core.train.model import Decoder

    whole, calls = Decoder.loss, []

    def loss(self, x, targets):
        calls.append(1)
        return whole(self, x, targets) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(Decoder, "loss", loss)
    result = run(tmp_path)
    failed = [gate.id for gate in result.gates if gate.verdict == FAIL]
    assert result.status == ABORTED and failed == ["GATE-TRAIN-007", "INV-FINITE"]
    assert "the loss of step 2 is nan" in result.sentence and result.checkpoint.name == "step-000002"
    assert [json.loads(line)["step"] for line in (result.out / "train.jsonl").read_text().splitlines()] == [0, 1]


def test_a_weight_that_is_not_a_number_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    def change(optimizer, step):
        step()
        group = optimizer.param_groups[0]["params"]
        if optimizer.state[group[0]]["step"] == 3:
            group[-1].data[0, 0] = math.inf

    monkeypatch.setattr("core.train.runner.make_optimizer", optimizer_with(change))
    result = aborted(tmp_path, "INV-CENSUS", checkpoint_every=3, steps_per_epoch=6)
    assert "1 parameters hold NaN or Inf, blk.1.ffn_down.weight first" in result.sentence and result.checkpoint is None


def test_a_model_without_a_causal_mask_does_not_start(tmp_path, monkeypatch):
    def seeing(q_TNH, k_SKH, v_SKH):
        q, k, v = (t.transpose(0, 1) for t in (q_TNH, k_SKH, v_SKH))
        k, v = (t.repeat_interleave(q.shape[0] // k_SKH.shape[1], 0) for t in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)

    monkeypatch.setattr("core.train.model.attend", seeing)
    result = aborted(tmp_path, "PROBE-FUTURE")
    assert "tokens see the future" in result.sentence and not (result.out / "train.jsonl").exists()


def test_a_model_without_rope_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr("core.train.model.rotate", lambda x, *rest: x)
    assert "position does not matter" in aborted(tmp_path, "PROBE-POSITION").sentence


def test_an_attention_that_leaks_one_token_does_not_start(tmp_path, monkeypatch):
    def leaking(q_TNH, k_SKH, v_SKH):
        return attend(q_TNH, k_SKH, torch.cat((v_SKH[1:], v_SKH[-1:])))  # values of the token after

    monkeypatch.setattr("core.train.model.attend", leaking)
    aborted(tmp_path, "PROBE-FUTURE")


def seen(tmp_path, **changes):
    plan = settle(TrainOptions(tmp_path, steps=100))
    usual = dict(plan=plan, step=5, measured=Measured(5.0, 2.0, 1.0, 0.0, False), batch_hash="a", cursor=40,
                 data_epoch=0, is_first=False)
    return StepObservation(**(usual | changes))


def test_a_data_order_that_goes_back_is_caught(tmp_path):
    from core.train.config import learning_rate

    sound = seen(tmp_path)
    sound = seen(tmp_path, measured=Measured(5.0, 2.0, 1.0, learning_rate(sound.plan, 5), False))
    assert first_violation(sound, InvariantState(cursor=40)) is None
    assert first_violation(sound, InvariantState(cursor=48))[0] == "INV-CURSOR"


def test_a_schedule_made_for_a_longer_run_is_said(tmp_path):
    short = settle(TrainOptions(tmp_path, steps=10, warm_up=10))
    assert "100% of its peak" in schedule_notes(short)[0]
    assert not schedule_notes(settle(TrainOptions(tmp_path, steps=100)))


def test_a_census_names_the_first_parameter():
    assert not_finite([], 3) is None and "2 parameters hold NaN or Inf, a first" in not_finite(["a", "b"], 3)
