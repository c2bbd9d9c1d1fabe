"""The trained model against the traced one: same functions, same numbers; and one step against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from core.formats.open_model import open_model
from core.model import lockstep
from core.model.arch import read_arch
from core.model.forward import forward
from core.model.model import Model
from core.system.errors import UsageError
from core.trace.taps import record_values
from core.train.checkpoint import State, model_of, write_checkpoint
from core.train.checks.probes import GOLDEN_TOLERANCE, golden_difference
from core.train.config import TrainOptions, settle
from core.train.float64_gradients import oracle_cells
from core.train.model import load_decoder, make_decoder
from core.train.step import Stepper, make_optimizer
from tests.support.builders import write_tiny_gguf
from tests.support.training import write_config

SAME = 2e-6      # relative: float32 sums of at most 48 terms in another order
FLOAT64 = 1e-5   # relative L2 of a float32 gradient over 64 tokens
CPU = torch.device("cpu")


@pytest.fixture
def arch(tmp_path):
    return settle(TrainOptions(tmp_path, config=str(write_config(tmp_path / "c.toml")))).arch


def ids(n_row: int, n_col: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(300, (n_row, n_col), generator=torch.Generator().manual_seed(seed))


def stepper_of(model):
    return Stepper(model, model, make_optimizer(model), CPU)


def traced_values(path, tokens):
    """Every stage's values of the traced forward, and its logits."""
    file = open_model(path)
    values: dict = {}
    model = Model(file, read_arch(file), CPU)
    logits = lockstep.run_lockstep([lockstep.ForwardRun(forward(model, tokens, record_values(values)), "f32", 1)])[0]
    return values, logits


@pytest.mark.parametrize("name", ["model.gguf", "model.apr"])
def test_a_checkpoint_traces_to_the_activations_that_were_trained(tmp_path, arch, name):
    model = make_decoder(arch, seed=1)
    for _, weight in model.named_parameters():  # away from the start, where norms are 1 and attention is flat
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    path = write_checkpoint(tmp_path, 1, State(model.state_dict(), {}, {}), arch, None, None, "m") / name
    tokens = ids(1, 24)
    values, logits = traced_values(path, tokens[0].tolist())
    x_TBD = torch.nn.functional.embedding(tokens.t(), model.token_embd.weight)
    for layer, block in enumerate(model.blk):
        x_TBD = block(x_TBD, model.angles(24))
        found, wanted = values[layer, "output"], x_TBD[:, 0].detach()
        difference = float((found - wanted).norm() / wanted.norm())
        assert difference <= SAME, f"layer {layer}: relative L2 {difference:.3g}, allowed {SAME}"
    assert float((logits[0] - model.logits(tokens)[-1, 0]).detach().abs().max()) <= SAME * float(logits.abs().max())


def test_sequences_of_a_batch_do_not_touch_each_other(arch):
    model, batch = make_decoder(arch, seed=1), ids(3, 12)
    alone = torch.cat([model.logits(row[None]) for row in batch], 1)
    assert torch.allclose(model.logits(batch), alone, rtol=0, atol=SAME * float(alone.detach().abs().max()))


def test_a_fresh_model_s_loss_is_that_of_guessing_and_a_seed_gives_one_model(arch):
    batch = ids(8, 17)
    loss = make_decoder(arch, 1)(batch[:, :-1], batch[:, 1:]).item()
    assert abs(loss - math.log(arch.n_vocab)) < 0.1
    a, b, c = (make_decoder(arch, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[n], b[n]) for n in a) and not torch.equal(a["token_embd.weight"], c["token_embd.weight"])


def test_a_model_file_is_taken_up_and_one_with_other_parts_is_refused(tmp_path):
    file = open_model(write_tiny_gguf(tmp_path / "m.gguf", arch="llama", tied=False))
    model = load_decoder(file, read_arch(file))
    _, logits = traced_values(file.path, [5, 9, 2, 7])
    found = model.logits(torch.tensor([[5, 9, 2, 7]]))[-1, 0].detach()
    assert float((logits[0] - found).abs().max()) <= 1e-5 * float(logits.abs().max())
    other = open_model(write_tiny_gguf(tmp_path / "q.gguf", arch="qwen2"))
    with pytest.raises(UsageError, match=r"is a qwen2 with blk\.0\.attn_q\.bias"):
        load_decoder(other, read_arch(other))


def test_an_export_names_what_the_reader_needs(arch):
    keys = model_of(arch, None, "x").keys
    assert keys["llama.rope.dimension_count"] == 8 and keys["apr.rope_type"] == 0


def test_a_step_is_adamw_with_clipping_and_decay_on_matrices_only(arch):
    model, twin, batch = make_decoder(arch, 1), make_decoder(arch, 1), ids(4, 17)
    measured = stepper_of(model).take_step(0, batch, 1e-3, statistics=True)
    loss = twin(batch[:, :-1], batch[:, 1:])
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    assert measured.loss == loss.item() and measured.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for (name, found), wanted in zip(model.named_parameters(), twin.parameters(), strict=True):
        decay = 0.01 if wanted.ndim > 1 else 0.0
        mean, square = 0.1 * wanted.grad, 0.05 * wanted.grad**2
        step = (mean / 0.1) / ((square / 0.05).sqrt() + 1e-8)
        expected = wanted.detach() * (1 - 1e-3 * decay) - 1e-3 * step
        assert torch.allclose(found, expected, rtol=0, atol=1e-7), name


def test_gradient_statistics_are_those_of_the_step(arch):
    model, batch = make_decoder(arch, 1), ids(4, 17)
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    grads = stepper_of(model).take_step(7, batch, 1e-3, statistics=True).grads
    twin = make_decoder(arch, 1)
    torch.autograd.backward(twin(batch[:, :-1], batch[:, 1:]))
    layer = {n: w.grad for n, w in twin.named_parameters() if n.startswith("blk.1.")}
    row = next(r for r in grads.rows if r.layer == 1)
    moved = sum(float((model.get_parameter(n) - before[n]).detach().norm()) ** 2 for n in layer) ** 0.5
    assert grads.step == 7 and [r.layer for r in grads.rows] == [0, 1, None]
    assert row.grad_norm == pytest.approx(sum(float(g.norm()) ** 2 for g in layer.values()) ** 0.5, rel=1e-5)
    assert row.update_ratio == pytest.approx(moved / sum(float(before[n].norm()) ** 2 for n in layer) ** 0.5, rel=1e-5)
    unread = set(range(300)) - set(batch[:, :-1].ravel().tolist())
    assert grads.parameters["token_embd.weight"][2] == 0.0 and unread  # a tied head gives every row a gradient


def test_a_step_that_is_not_finite_leaves_the_weights_alone(arch):
    model, batch = make_decoder(arch, 1), ids(4, 17)
    model.blk[1].ffn_up.weight.data[0, 0] = float("inf")
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    measured = stepper_of(model).take_step(0, batch, 1e-3, statistics=True)
    assert not measured.is_finite
    assert all(torch.equal(before[n], w) for n, w in model.named_parameters())


def test_the_golden_run_gives_the_committed_losses():
    assert golden_difference() <= GOLDEN_TOLERANCE


def oracle_of(model, batch):
    torch.autograd.backward(model(batch[:, :-1], batch[:, 1:]))
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    return oracle_cells(model, batch, found, FLOAT64)


def test_the_oracle_finds_the_gradients_of_a_sound_model_right(arch):
    cells = oracle_of(make_decoder(arch, 1), ids(2, 17))
    assert len(cells) == 20 and all(cell.holds for cell in cells), [c for c in cells if not c.holds]


def test_the_oracle_names_layers_that_a_cut_residual_leaves_without_gradient(arch, monkeypatch):
    from core.train.model import Block

    whole = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, angles: whole(self, x.detach(), angles))
    cells = {cell.name: cell for cell in oracle_of(make_decoder(arch, 1), ids(2, 17))}
    assert not cells["blk.0.ffn_up.weight"].holds and cells["blk.0.ffn_up.weight"].slope_error > 0.9
    assert cells["blk.1.ffn_up.weight"].holds


def test_the_oracle_names_a_gradient_that_is_scaled_wrongly(arch):
    model, batch = make_decoder(arch, 1), ids(2, 17)
    torch.autograd.backward(model(batch[:, :-1], batch[:, 1:]))
    found = {n: w.grad.clone() for n, w in model.named_parameters()}
    found["blk.0.attn_k.weight"] *= 1.01
    bad = [c for c in oracle_cells(model, batch, found, FLOAT64) if not c.holds]
    assert [c.name for c in bad] == ["blk.0.attn_k.weight"] and bad[0].error == pytest.approx(0.01, rel=0.01)


def test_the_oracle_is_not_led_astray_by_parts_that_were_compiled(arch):
    model = make_decoder(arch, 1)
    loss = model.loss  # torch.compile leaves a function on a model, bound to these float32 weights, also in a copy
    model.loss = lambda x, targets: loss(x, targets)
    assert all(cell.holds for cell in oracle_of(model, ids(2, 17)))
