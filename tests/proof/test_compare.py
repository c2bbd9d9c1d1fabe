"""The verdict on every kind of pair: a bug is never called a choice, and a choice or rounding is never called a bug."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core import session
from core.model import arch
from core.model.stages import GRID_STAGES
from core.proof.verdict import Comparison
from core.quant.types import QUANTS
from core.system.errors import UsageError
from tests.support.small_models import IDS, write_model
from tests.support.traces import cells_of, trace_of, values

WIDE = {"d_model": 256, "d_ff": 256, "n_layer": 2}


def source(path: Path, **settings) -> session.Source:
    return session.Source(path, device="cpu", **settings)


def compared(a: session.Source, b: session.Source, ids=IDS, **options) -> Comparison:
    prompt = None if ids is None else session.Prompt(tokens=tuple(ids))
    return session.compare(a, b, prompt, session.RunOptions(**options))


def held(result: Comparison, verdict: str, first=None, side: str | None = None, says: str = "") -> None:
    """The verdict, the first place (False: any), the side and a word of the reasons; a failure shows them all."""
    text = " | ".join(result.reasons)
    assert result.verdict == verdict, f"{result.verdict}, {verdict} was wanted: {text}"
    assert first is False or result.first == first, f"first {result.first}, {first} was wanted: {text}"
    assert result.side == side, f"side {result.side}, {side} was wanted: {text}"
    assert says in text, f"{says!r} is not said: {text}"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One wide model as several types, and a small one."""
    folder = tmp_path_factory.mktemp("pairs")
    for quant in ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "Q4_0", "Q5_0"):
        write_model(folder / f"{quant}.gguf", quant, **WIDE)
    write_model(folder / "small.gguf", tokenizer="bpe")
    return folder


@pytest.fixture(scope="module")
def small(files) -> Path:
    return files / "small.gguf"


# --- nothing differs ---


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_a_model_agrees_with_itself_on_another_count_of_threads(compute, files):
    a = source(files / "Q4_K.gguf", compute=compute)
    held(compared(a, replace(a, threads=1)), "AGREE")
    held(compared(replace(a, threads=1), replace(a, threads=3)), "AGREE")


def test_a_pair_says_that_watching_changed_neither_side(small):
    result = compared(source(small), source(small))
    assert (result.a.observed_equals_unobserved, result.b.observed_equals_unobserved) == (True, True)
    assert result.first is None and result.measured is not None and result.multiple is not None


def test_a_copy_of_the_file_agrees_and_every_cell_was_measured(small, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(small.read_bytes())
    result = compared(source(small), source(copy))
    held(result, "AGREE")
    assert {s for _, s in result.cells} >= set(GRID_STAGES) and all(c.rel_l2 == 0 for c in result.cells.values())


def test_a_tied_head_agrees_with_the_same_head_written_out(tmp_path):
    kept: dict[str, np.ndarray] = {}
    tied = write_model(tmp_path / "t.gguf", changes={
        "token_embd.weight": lambda x: kept.setdefault("x", x), "output.weight": lambda x: None})
    untied = write_model(tmp_path / "u.gguf", changes={"output.weight": lambda x: kept["x"]})
    held(compared(source(tied), source(untied)), "AGREE")


def test_the_same_spike_on_both_sides_is_h1(tmp_path):
    def spiky(layer: int) -> dict:
        return {f"blk.{layer}.ffn_gate.weight": lambda x: x * 40}

    path = write_model(tmp_path / "spike.gguf", n_layer=4, changes=spiky(2))
    result = compared(source(path), source(path, threads=1))
    held(result, "H1", says="ffn_gate is")


def test_a_nan_in_the_weights_of_both_sides_is_no_difference(tmp_path):
    def broken(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[3, 3] = np.nan
        return x

    path = write_model(tmp_path / "nan.gguf", changes={"blk.1.ffn_up.weight": broken})
    result = compared(source(path), source(path, threads=1))
    held(result, "H1", says="NaN")
    held(compared(source(path), source(path, compute="bf16")), "H3", first=False)


# --- H3: a declared choice ---


@pytest.mark.parametrize(("a", "b"), [
    *((a, b) for a in ("F16", "Q4_K") for b in ("F32", "BF16", "Q8_0", "Q6_K", "Q4_0", "Q5_0")), ("Q4_K", "F16")])
def test_one_model_in_two_quant_types_is_h3(a, b, files):
    result = compared(source(files / f"{a}.gguf"), source(files / f"{b}.gguf"))
    held(result, "H3", first=False, says=f"{a} in A, {b} in B")
    assert result.first is not None


@pytest.mark.parametrize(("a", "b"), [("f32", "q8"), ("f32", "bf16"), ("q8", "f32"), ("bf16", "f32")])
def test_another_compute_of_one_file_is_h3_or_within_the_coarse_sides_own_floor(a, b, files):
    result = compared(source(files / "Q4_K.gguf", compute=a), source(files / "Q4_K.gguf", compute=b))
    if a == "f32":
        held(result, "H3", first=False, says=f"compute {a}")
    else:
        assert result.verdict in ("AGREE", "H3"), result.reasons


def test_another_type_and_another_compute_together_are_h3(files):
    a, b = source(files / "Q4_K.gguf", compute="q8"), source(files / "F16.gguf")
    held(compared(a, b), "H3", first=False, says="Q4_K in A")


@pytest.mark.parametrize("run", [
    lambda files: compared(source(files / "Q8_0.gguf"), source(files / "Q4_0.gguf")),
    lambda files: session.check(source(files / "Q8_0.gguf"), session.Prompt(tokens=IDS)),
], ids=["compare", "check"])
def test_a_files_layers_are_resolved_once_whatever_is_asked_of_its_tensors(run, files, monkeypatch):
    resolved, own = list[int](), arch.resolve_layer
    monkeypatch.setattr(arch, "resolve_layer", lambda *a: resolved.append(a[2]) or own(*a))
    run(files)
    assert resolved and resolved.count(0) <= 2, resolved  # of each side


def test_another_context_length_is_no_hyper_parameter_of_the_forward(files, tmp_path):
    longer = write_model(tmp_path / "long.gguf", "Q4_K", **WIDE, keys={"qwen2.context_length": 4096})
    held(compared(source(files / "F16.gguf"), source(longer)), "H3", first=False)


def test_weights_too_faint_for_a_types_scales_are_explained_by_them(tmp_path):
    faint = {"blk.1.attn_output.weight": lambda x: x * np.float32(1e-8)}
    a, *others = (write_model(tmp_path / f"{q}.gguf", q, **WIDE, changes=faint) for q in ("F32", "F16", "Q8_0", "Q4_K"))
    for b in others:
        held(compared(source(a), source(b)), "H3", first=False)


def test_a_choice_is_named_though_a_coarse_compute_hides_half_of_it(files):
    a, b = (source(files / f"{q}.gguf", compute="bf16") for q in ("F16", "Q6_K"))
    held(compared(a, b), "H3", first=False, says="Q6_K in B")


# --- H2: a bug in the values, the side found by float64 ---


@pytest.mark.parametrize("plant", [
    "scale@embedding", "negate@0.attn_norm", "shift@1.qkv", "swap@2.q_rope", "negate@0.k_rope", "nan@1.attn_mix",
    "scale@2.attn_out", "shift@0.attn_resid", "scale@1.ffn_norm", "swap@2.ffn_gate", "nan@0.ffn_up",
    "negate@1.ffn_silu", "shift@2.ffn_swigl", "scale@1.ffn_out", "scale@2.output", "swap@final_norm", "negate@logits"])
def test_a_planted_bug_is_h2_at_its_place_and_its_side_is_named(plant, small):
    layer, _, stage = plant.partition("@")[2].rpartition(".")
    place = (int(layer) if layer else None, stage)
    wrong, right = source(small, plant=plant), source(small, threads=1)
    if len(stage) % 2:
        held(compared(wrong, right), "H2", first=place, side="A")
    else:
        held(compared(right, wrong), "H2", first=place, side="B")


@pytest.mark.parametrize(("plant", "compute"), [
    pytest.param(plant, compute, marks=() if (turn + i) % 2 == 0 else pytest.mark.slow)  # in turn, by default
    for turn, plant in enumerate((
        "scale@1.ffn_out", "nan@0.ffn_up", "swap@1.ffn_gate", "scale@embedding", "negate@logits"))
    for i, compute in enumerate(("q8", "bf16"))])
def test_a_planted_bug_is_told_from_the_other_sides_compute(plant, compute, files):
    path = files / "Q4_K.gguf"
    layer, _, stage = plant.partition("@")[2].rpartition(".")
    place = (int(layer) if layer else None, stage)
    held(compared(source(path, plant=plant), source(path, compute=compute)), "H2", first=place, side="A")
    held(compared(source(path, compute=compute, plant=plant), source(path)), "H2", first=place, side="A")


def test_a_planted_bug_is_told_from_another_quant_type(files):
    held(compared(source(files / "Q6_K.gguf", plant="scale@1.ffn_out"), source(files / "Q4_K.gguf")), "H2",
         first=(1, "ffn_out"), side="A")


def test_the_same_bug_on_both_sides_is_not_seen_by_the_pair(small):
    held(compared(source(small, plant="scale@1.ffn_out"), source(small, plant="scale@1.ffn_out")), "AGREE")


# --- H2: a bug in the file, each side right by its own weights ---


def one_value(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.reshape(-1)[x.size // 2] += 1.0
    return x


@pytest.mark.parametrize("name", [
    "blk.1.attn_norm.weight", "blk.0.attn_q.weight", "blk.2.attn_k.weight", "blk.1.attn_v.weight", "blk.1.attn_q.bias",
    "blk.0.attn_output.weight", "blk.2.ffn_norm.weight", "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight",
    "blk.2.ffn_down.weight", "output_norm.weight", "output.weight"])
def test_one_changed_value_of_one_weight_is_h2_and_the_tensor_is_named(name, small, tmp_path):
    other = write_model(tmp_path / "o.gguf", tokenizer="bpe", changes={name: one_value})
    held(compared(source(small), source(other)), "H2", first=False, says=name)


def zero_bias(x: np.ndarray) -> np.ndarray:
    return x * 0


def transposed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.T)


def heads_exchanged(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:64], x[64:128] = x[64:128].copy(), x[:64].copy()
    return x


def scaled_block(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[0, :256] *= 64
    return x


def two_rows(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[[7, 9]] = x[[9, 7]]
    return x


def wrong_row(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[100] *= 1.5
    return x


def too_large(x: np.ndarray) -> np.ndarray:
    return x * np.float32(1.2)


BUGS = {
    "blk.0.attn_q.bias": zero_bias, "blk.1.attn_output.weight": transposed, "blk.1.attn_q.weight": heads_exchanged,
    "blk.0.ffn_down.weight": scaled_block, "blk.1.ffn_gate.weight": two_rows, "blk.0.ffn_up.weight": wrong_row,
    "blk.1.attn_k.weight": too_large,
}


@pytest.mark.parametrize(("name", "a", "b"), [
    pytest.param(name, a, b, marks=() if (turn + i) % 4 == 0 or i == 1 else pytest.mark.slow)
    for turn, name in enumerate(BUGS)  # by default each in one pair of types, and in one more
    for i, (a, b) in enumerate([("Q4_K", "Q4_K"), ("F16", "Q4_K"), ("Q4_K", "Q6_K"), ("Q8_0", "Q4_0")])])
def test_a_bug_in_a_weight_is_told_from_another_quant_type(name, a, b, files, tmp_path):
    wrong = write_model(tmp_path / "w.gguf", b, **WIDE, changes={name: BUGS[name]})
    held(compared(source(files / f"{a}.gguf"), source(wrong)), "H2", first=False, says=name)


@pytest.mark.parametrize(("keys", "says"), [
    ({"qwen2.attention.layer_norm_rms_epsilon": 1e-5}, "layer_norm_rms_epsilon is 1e-06 in A and 1e-05 in B"),
    ({"qwen2.rope.freq_base": 1e6}, "rope.freq_base is 10000 in A and 1000000 in B"),
    ({"apr.rope_type": 0}, "rope_type is halves in A and adjacent in B"),
    ({"qwen2.rope.dimension_count": 8}, "rope.dimension_count is 16 in A and 8 in B"),
    ({"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0}, "rope.scaling.type is none in A"),
    ({"qwen2.attention.head_count": 8, "qwen2.attention.head_count_kv": 4, "qwen2.attention.key_length": 8,
      "qwen2.attention.value_length": 8, "qwen2.rope.dimension_count": 8}, "head_count is 4 in A and 8 in B"),
])
def test_one_other_hyper_parameter_is_h2_and_the_key_is_named(keys, says, small, tmp_path):
    other = write_model(tmp_path / "o.gguf", tokenizer="bpe", keys=keys)
    held(compared(source(small), source(other)), "H2", first=False, says=says)


def test_a_bias_that_one_file_lacks_is_h2_and_named(small, tmp_path):
    other = write_model(tmp_path / "o.gguf", tokenizer="bpe", changes={"blk.1.attn_k.bias": lambda x: None})
    held(compared(source(small), source(other)), "H2", first=(1, "qkv"), says="blk.1.attn_k.bias")


def test_a_changed_weight_is_named_though_the_computes_differ_too(small, tmp_path):
    other = write_model(tmp_path / "o.gguf", tokenizer="bpe", changes={"blk.1.ffn_up.weight": wrong_row})
    held(compared(source(small), source(other, compute="bf16")), "H2", first=False, says="blk.1.ffn_up.weight")


# --- not comparable, not conclusive ---


@pytest.mark.parametrize(("more", "says"), [
    ({"n_layer": 2}, "n_layer"), ({"d_ff": 96}, "widths"), ({"n_vocab": 100}, "n_vocab"), ({"d_model": 128}, "d_model"),
    ({"n_kv_head": 4}, "widths")])
def test_another_size_is_not_comparable_and_the_fact_is_listed(more, says, tmp_path):
    a, b = write_model(tmp_path / "a.gguf"), write_model(tmp_path / "b.gguf", **more)
    held(compared(source(a), source(b)), "NOT_COMPARABLE", says=says)


def test_another_vocabulary_is_not_comparable(small, tmp_path):
    def renamed(path: Path) -> Path:
        from tests.support.builders import tiny_vocab
        names = list(tiny_vocab("bpe")["tokenizer.ggml.tokens"])
        names[40], names[41] = names[41], names[40]
        return write_model(path, tokenizer="bpe", keys={"tokenizer.ggml.tokens": names})

    held(compared(source(small), source(renamed(tmp_path / "o.gguf"))), "NOT_COMPARABLE", says="vocabulary")


@pytest.mark.parametrize(("scope", "ids"), [("pos:7", IDS), ("rest", IDS[:1]), ("pos:1", IDS[:1])])
def test_a_scope_that_covers_no_token_is_not_comparable_and_never_a_pass(scope, ids, small):
    held(compared(source(small, plant="scale@1.qkv"), source(small), ids, scope=scope), "NOT_COMPARABLE", says="scope")


def test_a_type_without_a_measured_row_is_inconclusive(files, tmp_path, monkeypatch):
    monkeypatch.setitem(QUANTS, "TQ2_0", replace(QUANTS["TQ2_0"], error=None))
    ternary = {"blk.0.ffn_up.weight": "TQ2_0"}
    other = write_model(tmp_path / "o.gguf", "F16", **WIDE, quants=ternary)
    held(compared(source(files / "F16.gguf"), source(other)), "INCONCLUSIVE", first=False, says="no measured row")
    wrong = write_model(tmp_path / "w.gguf", "F16", **WIDE, quants=ternary, changes={"blk.1.ffn_up.weight": wrong_row})
    held(compared(source(files / "F16.gguf"), source(wrong)), "H2", first=False, says="blk.1.ffn_up.weight")


def test_a_difference_just_above_the_floor_is_inconclusive(small, tmp_path):
    for size in np.geomspace(1e-6, 1e-3, 13):
        grown = {"output_norm.weight": lambda x, s=size: x * np.float32(1 + s)}
        other = write_model(tmp_path / "n.gguf", tokenizer="bpe", changes=grown)
        result = compared(source(small), source(other))
        assert result.verdict in ("AGREE", "INCONCLUSIVE", "H2")
        if result.verdict == "INCONCLUSIVE":
            assert result.multiple <= 10 and result.first is None and "output_norm.weight" in result.reasons[0]
            if result.multiple > 3:
                return
    raise AssertionError("no size was between 3 and 10 floors")


# --- scopes ---


def test_at_scope_last_a_bug_at_the_last_token_only_is_found_and_at_scope_first_it_is_not_there(small):
    broken = source(small, plant="nan@2.ffn_norm")
    held(compared(broken, source(small), scope="last"), "H2", first=(2, "ffn_norm"), side="A")
    held(compared(broken, source(small), scope="first"), "AGREE")


@pytest.mark.parametrize(("scope", "token"), [("last", len(IDS) - 1), ("first", 0), ("pos:2", 2)])
def test_a_cell_names_its_worst_token_by_its_position_in_the_prompt(scope, token, small):
    result = compared(source(small, plant="scale@1.ffn_out"), source(small), scope=scope)
    assert {cell.token for place, cell in result.cells.items() if place[1] != "logits"} == {token}


@pytest.mark.parametrize("scope", ["all", "last", "first", "rest", "pos:2"])
def test_a_bug_at_every_token_is_named_at_every_scope(scope, small):
    result = compared(source(small, plant="shift@1.ffn_swigl"), source(small), scope=scope)
    held(result, "H2", first=(1, "ffn_swigl"), side="A")


@pytest.mark.parametrize("scope", ["first", "pos:2"])
def test_a_bug_that_the_scope_does_not_cover_is_never_an_internal_error(scope, small):
    result = compared(source(small, plant="negate@logits"), source(small, compute="bf16"), scope=scope)
    assert result.verdict in ("H2", "H3") and (result.verdict == "H3" or result.first == (None, "logits"))


# --- bundles ---


@pytest.fixture(scope="module")
def bundles(files, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def bundle(name: str, path="small", keep_values=True, ids=IDS, layers=None, **settings) -> session.Source:
        if name not in made:
            traced = session.trace(source(files / f"{path}.gguf", **settings), session.Prompt(tokens=tuple(ids)),
                                   session.RunOptions(keep_values=keep_values, layers=layers))
            made[name] = session.export(traced, folder / name, command="test")
        return source(made[name])

    return bundle


def test_two_bundles_of_one_run_agree_with_values_and_without(bundles):
    for keep in (True, False):
        held(compared(bundles(f"a{keep}", keep_values=keep), bundles(f"b{keep}", keep_values=keep), None), "AGREE")


def test_two_bundles_with_values_on_other_threads_agree(bundles):
    for compute in ("f32", "bf16", "q8"):
        one, two = (bundles(f"{compute}{n}", "Q4_K", compute=compute, threads=n) for n in (1, 2))
        result = compared(one, two, None)
        assert result.verdict in ("AGREE", "INCONCLUSIVE"), result.reasons
        assert compute != "f32" or result.verdict == "AGREE"


def test_a_bundle_with_values_and_its_file_agree_and_the_file_is_fed_the_bundles_tokens(bundles, small):
    result = compared(bundles("short", ids=IDS[:3]), source(small), None)
    held(result, "AGREE")
    assert [t.id for t in result.b.tokens] == list(IDS[:3])


def test_a_bundle_without_values_and_its_file_agree(bundles, small):
    held(compared(bundles("bare", keep_values=False), source(small), None), "AGREE")


@pytest.mark.parametrize("plant", ["scale@1.ffn_out", "nan@2.qkv", "shift@embedding"])
def test_a_planted_bundle_is_h2_there_and_its_clean_file_names_the_side(plant, bundles, small):
    layer, _, stage = plant.partition("@")[2].rpartition(".")
    place = (int(layer) if layer else None, stage)
    held(compared(bundles(plant, plant=plant), source(small), None), "H2", first=place, side="A")
    held(compared(bundles("clean"), bundles(plant, plant=plant), None), "H2", first=place, says="no side")


def test_other_statistics_are_inconclusive(bundles, small):
    held(compared(bundles("wrong", keep_values=False, plant="scale@1.ffn_out"), source(small), None), "INCONCLUSIVE",
         first=(1, "ffn_out"), says="1.ffn_out")


def test_statistics_that_are_missing_on_one_side_are_no_pass(bundles, small):
    ids = IDS[:1]
    bad = bundles("allnan", keep_values=False, plant="nan@0.attn_norm", ids=ids)
    held(compared(bad, source(small), None), "INCONCLUSIVE", first=(0, "attn_norm"), says="attn_norm")


def test_bundles_of_two_quant_types_are_inconclusive_and_no_bug(bundles):
    result = compared(bundles("k", "Q4_K"), bundles("f", "F16"), None)
    held(result, "INCONCLUSIVE", first=False, says="ompare the")


def test_bundles_of_two_computes_are_inconclusive_even_where_one_is_planted(bundles):
    held(compared(bundles("qq", "Q4_K", compute="q8"), bundles("ff", "Q4_K"), None), "INCONCLUSIVE", first=False)
    planted = bundles("qp", "Q4_K", compute="q8", plant="scale@1.ffn_out")
    held(compared(planted, bundles("ff", "Q4_K"), None), "INCONCLUSIVE", first=False)


def test_a_bundle_of_some_layers_is_no_pass_of_the_others(bundles, small):
    held(compared(bundles("part", layers=(0, 2)), source(small), None), "INCONCLUSIVE", says="not every layer")


def test_bundles_of_other_tokens_are_not_comparable(bundles, small):
    held(compared(bundles("a3", ids=(1, 2, 3)), bundles("b3", ids=(1, 2, 4)), None), "NOT_COMPARABLE", says="tokens")
    held(compared(bundles("a3", ids=(1, 2, 3)), source(small), IDS), "NOT_COMPARABLE", says="tokens")


def test_a_plant_cannot_be_put_into_a_saved_bundle(bundles, small):
    with pytest.raises(UsageError, match="plant"):
        compared(replace(bundles("short", ids=IDS[:3]), plant="scale@1.qkv"), source(small), None)


def test_values_of_another_shape_are_no_pass():
    from core.proof.judge_pair import judge_saved
    from core.proof.measure_pair import CompareOptions
    from core.system.cancel import never
    from core.trace.events import no_emit

    arrays = values(n_layer=2)
    cells = cells_of(arrays)
    a, b = trace_of(cells, values=arrays), trace_of(cells, values=arrays | {(1, "ffn_up"): arrays[1, "ffn_up"][:, :32]})
    result = judge_saved(a, b, CompareOptions("all", 10.0, no_emit, never))
    assert result.verdict != "AGREE" and result.verdict != "H1", result.reasons


def test_nothing_in_common_is_no_pass():
    from core.proof.judge_pair import judge_saved
    from core.proof.measure_pair import CompareOptions
    from core.system.cancel import never
    from core.trace.events import no_emit

    arrays = values(n_layer=1)
    cells = cells_of(arrays)
    for left, right in (({}, {}), ({(0, "q_rope"): cells[0, "q_rope"]}, {(0, "k_rope"): cells[0, "k_rope"]})):
        result = judge_saved(trace_of(left), trace_of(right), CompareOptions("all", 10.0, no_emit, never))
        assert result.verdict in ("INCONCLUSIVE", "NOT_COMPARABLE"), result.reasons


# --- clean pairs ---


# with 5 partners each; the second seed, one token alone, and other key-value heads, by `-m slow`
CLEAN = [pytest.param(seed, ids, arch, marks=[pytest.mark.slow] if seed or len(ids) == 1 else [])
         for seed, ids, arch in itertools.product(range(2), [(5,), tuple(range(40))], ["llama", "qwen2", "qwen3"])]


@pytest.mark.parametrize(("seed", "ids", "arch"), CLEAN)
def test_a_clean_pair_is_never_h2(seed, ids, arch, tmp_path):
    args = {"arch": arch, "seed": seed, "n_layer": 2, "n_kv_head": 1 + seed % 2}
    plain, eight = write_model(tmp_path / "a.gguf", **args), write_model(tmp_path / "b.gguf", "Q8_0", **args)
    for b in (source(plain, threads=1), source(plain, compute="q8"), source(plain, compute="bf16"), source(eight),
              source(eight, compute="q8", threads=1)):
        result = compared(source(plain, threads=2), b, ids)
        wanted = ("AGREE", "H1") if b.path == plain and b.compute != "bf16" else ("H3",)
        assert result.verdict in wanted, (b, result.verdict, result.reasons)
