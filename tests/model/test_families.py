"""Every layer kind runs, passes its check, decodes through its cache, and is refused where something is left unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.faults.value_faults import VALUE_FAULTS
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.model.experts import chosen, route
from core.model.forward import forward
from core.model.layers import Experts
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Cache, Model
from core.model.stages import STAGES
from core.proof.check import check_stages
from core.system.cancel import never
from core.system.errors import FileError, UsageError
from core.trace.run import open_side
from core.trace.taps import measure, no_tap, record, record_values
from tests.support.families import CASES, D, E, F, write_family

IDS = (3, 17, 5, 42, 42, 7, 90, 1, 8, 11)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "families"
ORDER = [s.name for s in STAGES]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: write_family(folder / f"{i}.gguf", name) for i, name in enumerate(CASES)}


def model_of(path, dtype=torch.float32) -> Model:
    file = open_model(path)
    return Model(file, read_arch(file), torch.device("cpu"), dtype)


def run(model, ids=IDS, cache=None, tap=no_tap):
    return run_lockstep([ForwardRun(forward(model, ids, tap, cache))])[0]


@pytest.mark.parametrize("name", CASES)
def test_a_layers_nodes_are_the_stages_that_its_forward_makes_in_order_and_as_wide(name, paths):
    model, seen = model_of(paths[name]), {}
    assert torch.isfinite(run(model, tap=record_values(seen))).all()
    for layer in model.arch.layers:
        made = {stage: value.shape[1] for (i, stage), value in seen.items() if i == layer.index}
        assert made == {stage: node.width for stage, node in layer.nodes.items()}
        assert list(made) == sorted(made, key=ORDER.index)
        assert all({i, "previous"} & {*made, "previous"} for node in layer.nodes.values() for i in node.inputs)


@pytest.mark.parametrize("name", CASES)
def test_decoding_through_the_cache_gives_the_logits_of_one_prefill(name, paths):
    model, cache = model_of(paths[name], torch.float64), Cache()
    run(model, IDS[:4], cache)
    for token in IDS[4:6]:
        run(model, (token,), cache)
    assert torch.allclose(run(model, IDS[6:], cache), run(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_clean_file_of_each_kind_passes_its_check(name, paths):
    errors = check_stages(open_side(open_model(paths[name]), "cpu"), list(IDS), cancelled=never)
    assert not [place for place, error in errors.items() if error.is_bad]


@pytest.mark.parametrize(("name", "plant"), [
    ("experts", "shift@1.moe_weights"), ("experts", "negate@0.moe_down"), ("experts", "scale@1.moe_router"),
    ("experts", "route-norm@0.moe_weights"),
    ("sigmoid router, groups, choice, shared", "no-choice-bias@1.moe_weights"),
    ("windows, caps, post norms", "no-window@0.attn_mix"), ("windows, caps, post norms", "silu@1.ffn_silu"),
    ("sinks, clamped gate", "no-sinks@1.attn_mix"), ("joined products", "transpose@1.qkv"),
    ("joined products", "drop-block@0.ffn_gate"), ("parallel, layer norm", "eps@1.attn_norm"),
    ("no gate, positions", "no-bias@0.ffn_up"), ("gated delta net", "stale@0.ssm_mix"),
    ("gated delta net", "rope-offset@1.q_rope"), ("Mamba-2", "transpose@0.ssm_in"),
    ("short convolution", "swap@0.ssm_mix"), ("latent attention", "scale@1.mla_kv_a_norm"),
    ("post norms only", "no-mask@0.attn_mix"), ("sigmoid router, groups, choice, shared", "negate@1.shexp_out")])
def test_a_planted_fault_is_named_at_its_place(name, plant, paths):
    errors = check_stages(open_side(open_model(paths[name]), "cpu", plant=plant), list(IDS), cancelled=never)
    layer, _, stage = plant.partition("@")[2].partition(".")
    bad = [place for place, error in errors.items() if error.is_bad]
    assert bad == [(int(layer), stage)], bad


@pytest.mark.parametrize("kind", [k for k, row in VALUE_FAULTS.items() if not row.value_only and not row.choice])
def test_a_kind_stands_only_where_its_wrong_value_can_be_made(kind, paths):
    for name in ("experts", "gated delta net", "latent attention", "parallel, layer norm"):
        model, seen = model_of(paths[name]), {}
        run(model, tap=record_values(seen))
        for layer in model.arch.layers:
            for stage in layer.nodes:
                if VALUE_FAULTS[kind].stands(model, layer.index, stage):
                    side = open_side(model.file, "cpu", plant=f"{kind}@{layer.index}.{stage}")
                    try:
                        run_lockstep([side.forward_run(list(IDS), side.bug())])
                    except UsageError as error:  # a bias that is not there, nibbles of float32
                        assert "changes nothing here" in str(error)


@pytest.mark.parametrize(("name", "keys", "extra", "says"), [
    ("experts", {}, {"blk.0.attn_sinks": (4,), "blk.1.odd": (3,)}, "does not know tensor 'blk.1.odd.weight'"),
    ("experts", {}, {"blk.2.attn_norm": (D,)}, "only 2 layers"),
    ("experts", {"attention.clamp_kqv": 8.0}, {}, "attention.clamp_kqv is 8.0"),
    ("experts", {"attention.causal": False}, {}, "causal is false"),
    ("experts", {"expert_gating_func": 4}, {}, "gating 4"),
    ("joined products", {"attn_logit_softcapping": 50.0}, {}, "does not read")])
def test_what_nobody_reads_is_refused_by_name(name, keys, extra, says, tmp_path):
    with pytest.raises(FileError) as caught:
        read_arch(open_model(write_family(tmp_path / "m.gguf", name, keys, extra)))
    assert says in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("name", "tensor"), [
    ("experts", "blk.1.attn_q_norm.weight"), ("experts", "blk.0.ffn_norm.weight"),
    ("windows, caps, post norms", "blk.1.post_ffw_norm.weight"), ("post norms only", "blk.0.attn_v.weight"),
    ("gated delta net", "blk.0.ssm_alpha.weight"), ("sinks, clamped gate", "blk.0.attn_sinks.weight")])
def test_a_tensor_that_the_family_always_has_is_missed(name, tensor, tmp_path):
    path = write_family(tmp_path / "m.gguf", name, change=lambda n, array: None if n == tensor else array)
    with pytest.raises(FileError, match=r"has no tensor"):
        read_arch(open_model(path))


def test_layers_of_multi_token_prediction_are_skipped_with_a_note(tmp_path):
    extra = {"blk.2.nextn.eh_proj": (D, 2 * D)}
    arch = read_arch(open_model(write_family(
        tmp_path / "m.gguf", "experts", {"block_count": 3, "nextn_predict_layers": 1}, extra)))
    assert arch.n_layer == 2 and "layer 2 (multi-token prediction)" in arch.notes[0]


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "softmax_chosen"])
def test_the_routers_weights_are_dense_and_not_zero_for_the_chosen_only(router):
    e = Experts(8, 2, router, F, "split", norm=True, groups=2, groups_used=1)
    logits = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    weights = route(e, logits, torch.zeros(8))
    assert torch.allclose(weights.sum(1), torch.ones(20)) and ((weights != 0).sum(1) == 2).all()
    picked = chosen(weights, 2)
    assert (picked[:, 0] < picked[:, 1]).all() and (picked // 4 == picked[:, :1] // 4).all(), "one group a token"


def test_an_expert_that_nobody_chose_is_never_read(tmp_path):
    plain = model_of(write_family(tmp_path / "a.gguf", "experts"))
    seen = {}
    logits = run(plain, tap=record_values(seen))
    unused = sorted(set(range(E)) - set(chosen(seen[0, "moe_weights"], 2).flatten().tolist()))
    ids = IDS
    while not unused:
        ids = ids[:-1]
        logits = run(plain, ids, tap=record_values(seen))
        unused = sorted(set(range(E)) - set(chosen(seen[0, "moe_weights"], 2).flatten().tolist()))

    def spoilt(name, array):
        if name == "blk.0.ffn_up_exps.weight":
            array[unused] = float("nan")
        return array

    assert torch.equal(run(model_of(write_family(tmp_path / "b.gguf", "experts", change=spoilt)), ids), logits)


def test_routing_weights_are_measured_over_the_chosen_and_their_channel_is_the_expert():
    dense = torch.zeros(2, 5)
    dense[0, 1], dense[0, 4], dense[1, 0], dense[1, 3] = 0.3, 0.7, 0.9, 0.1
    cells = {}
    tap = record(lambda place, stats: cells.__setitem__(place, stats), 2)
    tap(0, "moe_weights", dense)
    tap(0, "output", dense)
    cell = cells[0, "moe_weights"]
    assert cell.width == 2 and cell.rows["peak_channel"].tolist() == [4, 0]
    right = measure(torch.tensor([[0.3, 0.7], [0.9, 0.1]])).at("all")
    assert (cell.at("all").mean, cell.at("all").std) == (right.mean, right.std)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared files are not here")
@pytest.mark.parametrize("name", sorted(p.stem for p in SHARED.glob("*.gguf")))
def test_a_reference_files_figures_are_those_of_transformers(name):
    ref, model, seen = json.loads((SHARED / f"{name}.json").read_text()), model_of(SHARED / f"{name}.gguf"), {}
    run(model, ref["tokens"], tap=record_values(seen))
    for cell, scopes in ref["cells"].items():
        layer, stage = cell.split(".")
        if stage in ("mla_kv_b", "mla_q_a_norm"):
            continue
        value = seen[int(layer), stage]
        if stage == "moe_weights":
            value = value.gather(1, chosen(value, model.arch.layers[int(layer)].ffn.experts.used))
        mean, std, absmax = scopes["all"]
        found = (value.double().mean(), value.double().std(), value.abs().max())
        worst = max(abs(float(x) - y) for x, y in zip(found, (mean, std, absmax), strict=True)) / (std or 1)
        assert worst < 1e-4, f"{cell} is {worst:.1e} of its std off"
