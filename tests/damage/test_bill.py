"""The bill: its gradients are those of the forward, its variances those of the types, its figures near exact swaps."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from apr_tui.cli.main import main
from core.damage import bill, gradient
from core.damage.bill import own_steps
from core.damage.corpus import Corpus, cut
from core.damage.exact import boundaries, swap_kl, with_weights
from core.damage.gradient import head_gradients, hidden_with_graph, signs
from core.damage.logits import hidden_states, logits, untapped
from core.damage.recipe import quantize_lines, recipe
from core.damage.result import Raise, TensorDamage
from core.damage.steps import GROUP, SPACINGS, rounding_variance
from core.formats.open_model import open_model
from core.quant.dequantize import decode_rows, decode_weight
from core.quant.weight import Weight
from core.trace.run import open_side
from tests.support.families import CASES, write_family
from tests.support.small_models import quantised, write_model

IDS = (3, 17, 5, 42, 42, 7, 90)


class Grads:
    """Keeps every gradient, an expert's at its place."""

    draws = 1

    def __init__(self):
        self.found = {}

    def add(self, weight, expert, start, grad):
        shape = weight.shape if len(weight.shape) == 3 else (1, *weight.shape)
        own = self.found.setdefault(weight.name, torch.zeros(shape))
        own[expert or 0, start:start + len(grad)] += grad

    def decode(self, weight, start, stop):
        return decode_rows(weight, start, stop)


def along(side, direction):
    """The logits' sum along a direction, in float64."""
    hidden = hidden_states([side], IDS, untapped(1), lambda: False)[0]
    return float((logits(side, hidden, lambda: False).double() * direction).sum())


def nudged(side, name, direction, size):
    weight = side.model.file.weight(name)
    values = decode_weight(weight).view(direction.shape) + size * direction
    data = values.numpy().astype(np.float32).reshape(-1).view(np.uint8)
    return with_weights(side, {name: Weight(name, "F32", weight.shape, data)})


@pytest.mark.parametrize("name", [None, "experts", *(
    pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "experts")])
def test_a_gradient_is_the_slope_of_what_the_forward_says(tmp_path, name, monkeypatch):
    path = write_model(tmp_path / "m.gguf", "F32", tied=True) if name is None else write_family(
        tmp_path / "m.gguf", name)
    side, grads = open_side(open_model(path), "cpu", threads=1), Grads()
    hidden = hidden_with_graph(side.model, IDS, grads)
    seen = []
    monkeypatch.setattr(gradient, "signs", lambda seed, like: seen.append(signs(seed, like)) or seen[-1])
    torch.autograd.backward(hidden, head_gradients(side.model, hidden.detach(), grads, torch.Generator())[0])
    p = logits(side, hidden.detach(), lambda: False).double().softmax(-1)  # the head is one block of rows here
    z = p.sqrt() * seen[0] - p * (p.sqrt() * seen[0]).sum(-1, keepdim=True)
    assert len(seen) == 2 and torch.equal(*seen)
    assert len(grads.found) >= 5
    for weight, grad in grads.found.items():
        if "gate_inp" in weight:
            continue  # a router's choice has no slope
        direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(1))
        ends = [along(nudged(side, weight, direction, s), z) for s in (-1e-3, 1e-3)]
        slope, said = (ends[1] - ends[0]) / 2e-3, float((grad.double() * direction.double()).sum())
        assert said == pytest.approx(slope, rel=0.03, abs=0.02 * float(grad.norm()) + 1e-3), weight


def test_random_directions_have_the_fisher_information_as_their_mean_square(tmp_path):
    """By the head's bias-free logits: E[z z^T] = diag(p) - p p^T, over many draws."""
    side, grads = open_side(open_model(write_model(tmp_path / "m.gguf", "F32", tied=True)), "cpu", threads=1), Grads()
    grads.draws = 2000
    hidden = hidden_states([side], IDS[:1], untapped(1), lambda: False)[0]
    found = head_gradients(side.model, hidden, grads, torch.Generator().manual_seed(0))[:, 0].double()
    w = decode_weight(side.model.file.weight("token_embd.weight")).double()
    p = logits(side, hidden, lambda: False).double().softmax(-1)[0]
    fisher = w.T @ (torch.diag(p) - torch.outer(p, p)) @ w
    assert (found.T @ found / 2000 - fisher).norm() < 0.15 * fisher.norm()


@pytest.mark.parametrize("quant", sorted(SPACINGS))
def test_a_types_step_is_what_its_neighbouring_levels_are_apart(quant):
    try:
        data = quantised(np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32), quant)
    except NotImplementedError:
        pytest.skip("gguf-py does not write it")
    weight = Weight("w", quant, (2, 256), np.ascontiguousarray(data).view(np.uint8).reshape(-1))
    steps = (12 * rounding_variance(weight, 0, 2)).sqrt().view(2, -1)
    values = decode_rows(weight, 0, 2).view(2, -1, GROUP)
    for group, step in zip(values.view(-1, GROUP), steps.view(-1), strict=True):
        apart = group.unique().diff() / step
        assert torch.allclose(apart, apart.round(), atol=2e-2) and float(apart.round().min()) >= 1
    assert len({round(float(s), 9) for s in steps.view(-1)}) > 1


def test_own_steps_foretell_exact_swaps_and_a_swap_of_nothing_is_nothing(tmp_path, capsys):
    big = {"n_layer": 2, "d_model": 64, "tokenizer": "bpe", "seed": 3}
    original = write_model(tmp_path / "o.gguf", "F32", **big)
    file = write_model(tmp_path / "q.gguf", "Q4_0", **big, quants={"blk.1.ffn_down.weight": "Q8_0"})
    bills = {}
    for name, words in {"own": [], "original": ["--original", str(original)],
                        "exact": ["--original", str(original), "--exact", "--budget", "20000"]}.items():
        assert main(["damage", str(file), "--json", "--quiet", *words]) == 0
        bills[name] = json.loads(capsys.readouterr().out)
    exact = {t["name"]: t["kl"] for t in bills["exact"]["tensors"]}
    for name in ("own", "original"):
        said = {t["name"]: t["kl"] for t in bills[name]["tensors"] if t["name"] in exact}
        ranks = [np.argsort(np.argsort([d[n] for n in exact])) for d in (said, exact)]
        assert np.corrcoef(*ranks)[0, 1] > 0.8 and bills[name]["control"] == 0
    assert 0.5 < bills["original"]["total"] / bills["original"]["whole"] < 2 and bills["own"]["whole"] is None
    assert min(exact, key=exact.get) == "blk.1.ffn_down.weight"
    told = bills["exact"]
    assert told["recipe"] and sum(r["bytes"] for r in told["recipe"]) <= 20000
    assert told["measured"]["after"] < told["measured"]["before"]


def test_a_swap_from_a_boundary_is_the_swap_of_a_whole_run(tmp_path):
    side = open_side(open_model(write_model(tmp_path / "o.gguf", "F32")), "cpu", threads=1)
    other = open_model(write_model(tmp_path / "q.gguf", "Q4_0"))
    chunk = boundaries(side, IDS, lambda: False)
    for name in ("blk.2.ffn_up.weight", "blk.0.attn_q.weight", "output.weight", "token_embd.weight"):
        swap = {name: other.weight(name)}
        near = swap_kl(side, swap, [chunk], lambda: False)
        assert near == swap_kl(side, swap, [replace(chunk, before={})], lambda: False) > 0


def test_a_recipe_spends_no_more_than_its_budget_on_what_saves_most():
    weights = {n: Weight(n, "Q4_0", (64, 256), np.zeros(64 * 144, np.uint8)) for n in "abc"}
    bill = [TensorDamage(n, 0, "Q4_0", 64 * 144, kl, 0.0) for n, kl in (("a", 1.0), ("b", 0.01), ("c", 0.0))]
    for budget in (10, 1024, 9000, 30000, 10**6):
        lines = recipe(bill, weights, budget)
        assert sum(line.bytes for line in lines) <= budget and not any(line.name == "c" for line in lines)
        assert not lines or lines[0].name == "a"
    assert [line.to_type for line in recipe(bill, weights, 10**6)] == ["F32", "F32"]
    assert quantize_lines([Raise("blk.0.ffn_up.weight", "Q4_0", "Q8_0", 1, 0.1)]) == [
        "--tensor-type blk.0.ffn_up=q8_0"]


@pytest.mark.parametrize("words,code,said", [
    (["--exact"], 2, "--original"), (["--corpus", "/dev/zero"], 3, "regular file"), (["--budget", "0"], 2, "from 1"),
    (["--context", "x"], 2, "from 1")])
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, words, code, said):
    path = write_model(tmp_path / "m.gguf", "Q4_0", tokenizer="bpe")
    assert main(["damage", str(path), "--quiet", *words]) == code
    assert said in capsys.readouterr().err


def test_a_bills_folder_has_its_table_and_reports_and_is_shown_again(tmp_path, capsys):
    path = write_model(tmp_path / "m.gguf", "Q4_0", tokenizer="bpe")
    words = ["damage", str(path), "--quiet", "--json", "--budget", "4000", "--out", str(tmp_path / "o")]
    assert main(words) == 0
    said = capsys.readouterr().out
    found, page = json.loads(said), (tmp_path / "o" / "report.html").read_text()
    assert all(str(t["kl"]) in page and t["name"] in page for t in found["tensors"]) and "ESTIMATED" in page
    assert len((tmp_path / "o" / "tensors.csv").read_text().splitlines()) == 1 + len(found["tensors"])
    assert main(["show", str(tmp_path / "o"), "--json"]) == 0 and capsys.readouterr().out == said
    assert main(words) == 2 and "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0 and (tmp_path / "o" / "report.html").read_text() == page


def test_what_a_files_own_damage_adds_to_its_gradients_is_taken_out(tmp_path, monkeypatch):
    side = open_side(open_model(write_model(tmp_path / "m.gguf", "Q4_0")), "cpu", threads=1)
    weight, seeds = side.model.file.weight("blk.0.ffn_up.weight"), []

    def charge(model, tokens, charged, generator):
        seeds.append(charged.noise)
        noisy = charged.decode(weight, 0, 4) - decode_rows(weight, 0, 4)
        assert (charged.noise is None) == (not noisy.any())
        for name, ratio in (("a", 3.0), ("b", 3.0), ("c", 3.0), ("once", 0.03)):
            charged.tensors[name] = charged.tensors.get(name, np.zeros(1)) + len(tokens) * (ratio if noisy.any() else 1)

    monkeypatch.setattr(bill, "add_to_bill", charge)
    found = bill.own_rows(side, Corpus("x", ((1,) * 200, (2,) * 200)), bill.DamageOptions())
    assert found["a"] == found["b"] == found["c"] == pytest.approx([1 / 3]) and seeds == [None, 0, None, 1]
    assert found["once"] == pytest.approx([1 / 30])  # a slope that noise does not find again counts for less


def test_noise_is_as_large_as_a_types_rounding(tmp_path):
    weight = open_model(write_model(tmp_path / "m.gguf", "Q4_0")).weight("blk.0.ffn_up.weight")
    noise = gradient.Bill(own_steps(), lambda: False, 1, 5).decode(weight, 0, 64) - decode_rows(weight, 0, 64)
    wanted = rounding_variance(weight, 0, 64).mean()
    assert float(noise.square().mean() / wanted) == pytest.approx(1, rel=0.1)
    assert not torch.equal(noise, gradient.Bill(own_steps(), lambda: False, 1, 6).decode(weight, 0, 64)
                           - decode_rows(weight, 0, 64))


def test_another_model_is_no_original(tmp_path, capsys):
    path = write_model(tmp_path / "m.gguf", "Q4_0", tokenizer="bpe")
    other = write_model(tmp_path / "o.gguf", "F32", tokenizer="bpe", d_ff=64)
    assert main(["damage", str(path), "--quiet", "--original", str(other)]) == 4
    assert "is not the original" in capsys.readouterr().err


def test_a_text_is_cut_into_chunks_and_halves():
    assert cut([1, 2, 3, 4, 5], 2) == ((1, 2), (3, 4))
    first, held = Corpus("x", cut(list(range(10)), 4)).halves(4)
    assert (first.chunks, held.chunks) == (((0, 1, 2, 3),), ((4, 5, 6, 7),))
    assert own_steps() is not own_steps() and gguf.GGMLQuantizationType.Q4_0
